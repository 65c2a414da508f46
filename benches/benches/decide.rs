//! Choosing a node among 10,000 on which 100,000 volumes lie, and what one node's report costs.
//!
//! `cargo bench -p forebay-benches --bench decide`. One sample is one decision: the 99th percentile of single decisions is
//! printed first, by `p99`, then criterion's estimates.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::{Duration, Instant};

use api::fleet::{Fleet, Hypervisor, Licence, NodeFacts, Resources, Strengths};
use api::place::{Among, Behaviour, HypervisorNeed, Of, PlaceRequest, Policy};
use criterion::{Criterion, criterion_group, criterion_main};
use image::Digest;
use placement::decide::{View, decide, place};

const NODES: usize = 10_000;
const VOLUMES: usize = 100_000;
const IMAGES: usize = 200;
const POOLS: usize = 20;
const GIB: u64 = 1 << 30;

/// A request of this name.
type Kind = fn(String) -> PlaceRequest;

fn image(n: usize) -> Digest {
    Digest::of_chunk(format!("image {n}").as_bytes())
}

fn node(n: usize) -> NodeFacts {
    let strengths = Strengths { cpu: 0.9, disk: 0.5 + (n % 50) as f64 / 100.0, network: 0.8 };
    let hypervisor = Hypervisor {
        kind: "qemu".to_owned(),
        version: ["8.2", "9.1", "10.0"][n % 3].to_owned(),
        features: ["uefi".to_owned(), "vhost-user".to_owned()].into(),
        strengths,
    };
    NodeFacts {
        name: format!("node-{n}"),
        capacity: Resources {
            cpu_milli: 64_000,
            memory: 256 * GIB,
            disk: 4096 * GIB,
            network: 25_000_000_000,
        },
        architecture: Some("x86_64".to_owned()),
        hypervisors: vec![hypervisor],
        licences: BTreeMap::from([("w".to_owned(), Licence { held: Some(64), cost: 0.1 })]),
        labels: BTreeMap::from([("disk".to_owned(), "nvme".to_owned())]),
        functions: ["web".to_owned()].into(),
        domain: format!("site-{}/row-{}/rack-{}", n % 4, n % 40, n % 400),
        load: (n % 10) as f64 / 20.0,
        // The first images are on most nodes, the others on few.
        images: (0..IMAGES)
            .filter(|i| n.is_multiple_of(i + 1))
            .map(|i| (image(i), 4 * GIB))
            .collect(),
        pools: (0..POOLS)
            .filter(|p| n.is_multiple_of(p + 5))
            .map(|p| (format!("pool-{p}"), 1))
            .collect(),
        ..NodeFacts::default()
    }
}

/// Asks for as much as can be asked for.
fn everything(id: String) -> PlaceRequest {
    let rack = |of| Among { of, level: "rack".to_owned() };
    let mut request = PlaceRequest::new(
        id,
        Resources { cpu_milli: 2000, memory: 8 * GIB, disk: 40 * GIB, network: 1_000_000_000 },
    );
    request.architecture = Some("x86_64".to_owned());
    request.hypervisor = Some(HypervisorNeed {
        kinds: ["qemu".to_owned()].into(),
        at_least: Some("9".to_owned()),
        features: ["uefi".to_owned()].into(),
    });
    request.behaviour = Behaviour { cpu: 0.5, disk: 1.0, network: 0.2 };
    request.licences = ["w".to_owned()].into();
    request.labels = BTreeMap::from([("disk".to_owned(), "nvme".to_owned())]);
    request.function = Some("web".to_owned());
    request.tenant = Some("acme".to_owned());
    request.group = Some("g".to_owned());
    request.apart = vec![Among { of: Of::Group("g".to_owned()), level: "node".to_owned() }];
    request.spread = Some(rack(Of::Group("g".to_owned())));
    request.near = vec!["site-1/row-1/rack-1".to_owned()];
    (request.image, request.image_bytes) = (Some(image(0)), 4 * GIB);
    request.pool = Some("pool-0".to_owned());
    request
}

/// What the pools' monitor asks for.
fn build(id: String) -> PlaceRequest {
    let mut request = PlaceRequest::new(id, Resources { disk: 20 * GIB, ..Resources::default() });
    (request.image, request.image_bytes) = (Some(image(3)), 4 * GIB);
    request.builds = Some("pool-3".to_owned());
    request.spread = Some(Among { of: Of::Pool("pool-3".to_owned()), level: "rack".to_owned() });
    request
}

/// More than any node has.
fn impossible(id: String) -> PlaceRequest {
    PlaceRequest::new(id, Resources { memory: 1024 * GIB, ..Resources::default() })
}

fn view() -> View {
    let levels = ["site", "row", "rack"].map(str::to_owned).to_vec();
    let fleet = Fleet { levels, nodes: (0..NODES).map(node).collect(), instances: Vec::new() };
    let mut view = View::of(fleet).expect("a fleet that makes sense");
    for n in 0..VOLUMES {
        let needs = Resources { cpu_milli: 2000, memory: 8 * GIB, disk: 40 * GIB, network: 0 };
        let mut request = PlaceRequest::new(format!("vm-{n}"), needs);
        request.tenant = Some(format!("tenant-{}", n % 50));
        request.group = Some(format!("g-{}", n % 1000));
        view.reserve(&request, &format!("node-{}", n % NODES)).expect("a tenth of it is taken");
    }
    view
}

#[expect(clippy::disallowed_methods, reason = "a measurement reads the clock")]
fn timed(work: impl FnOnce()) -> Duration {
    let begun = Instant::now();
    work();
    begun.elapsed()
}

/// Prints percentiles of single decisions.
fn p99(view: &View, what: &str, request: Kind) {
    let policy = Policy::default();
    let mut times: Vec<Duration> = (0..1000)
        .map(|n| {
            let request = request(format!("x-{n}"));
            timed(|| {
                drop(black_box(
                    decide(view, &request, &policy).expect("a request that makes sense"),
                ))
            })
        })
        .collect();
    times.sort();
    println!("{what}: p50 {:?}, p99 {:?}, most {:?}", times[499], times[989], times[999]);
}

fn decisions(c: &mut Criterion) {
    let (mut view, policy) = (view(), Policy::default());
    let kinds: [(&str, Kind); 3] =
        [("everything", everything), ("build", build), ("impossible", impossible)];
    let mut group = c.benchmark_group("decide");
    for (what, request) in kinds {
        p99(&view, what, request);
        let request = request("x".to_owned());
        group.bench_function(what, |b| b.iter(|| black_box(decide(&view, &request, &policy))));
    }
    let request = build("x".to_owned());
    group.bench_function("build, placed and released", |b| {
        b.iter(|| {
            black_box(place(&mut view, &request, &policy)).expect("a request that makes sense");
            view.release(&request.id);
        });
    });
    let mut report = node(1);
    group.bench_function("one node's report", |b| {
        b.iter(|| {
            report.load = 0.5 - report.load;
            report.images.entry(image(7)).and_modify(|bytes| *bytes ^= 1).or_insert(GIB);
            view.set_node(report.clone()).expect("facts that make sense");
        });
    });
    group.finish();
}

criterion_group!(benches, decisions);
criterion_main!(benches);
