//! How well nodes are chosen, on fleets and requests that follow from seeds.
//!
//! `cargo test -p forebay-sim --test placing -- --nocapture` prints the numbers.

use std::collections::BTreeMap;

use api::fleet::{Fleet, Resources};
use api::place::{HeadRoom, PlaceRequest, Policy, Weights};
use forebay_sim::chance::Chance;
use forebay_sim::fleets::{NODE, Shapes, Zipf, image, most_share, nodes, stream};
use placement::decide::{View, place};

const SEEDS: u64 = 5;
const NODES: usize = 60;
const IMAGES: usize = 200;
/// How much more is asked for than there is room for.
const TIMES: f64 = 1.1;

fn policy(weights: Weights) -> Policy {
    Policy { head_room: HeadRoom::NONE, weights, ..Policy::default() }
}

fn view(count: usize) -> View {
    View::of(Fleet { nodes: nodes(count), ..Fleet::default() }).unwrap()
}

/// The share of the fleet that is placed: of the resource of which it is most.
fn density(placed: &[Resources]) -> f64 {
    let sum = placed.iter().fold(Resources::default(), |sum, of| sum.checked_add(of).unwrap());
    most_share(&sum) / NODES as f64
}

/// As they come, each where it is decided.
fn as_decided(requests: &[PlaceRequest]) -> f64 {
    let (mut view, policy) = (view(NODES), policy(Weights::default()));
    let placed = requests
        .iter()
        .filter(|request| place(&mut view, request, &policy).unwrap().chosen.is_some());
    density(&placed.map(|request| request.needs).collect::<Vec<_>>())
}

/// All known before, the largest first, each where least is left (best fit decreasing, with what is left added up over
/// the resources: Panigrahy, Talwar, Uyeda, Wieder, "Heuristics for vector bin packing", 2011).
fn best_fit_decreasing(requests: &[PlaceRequest]) -> f64 {
    let share = |of: &Resources| -> [f64; 3] {
        let shares = of.all().into_iter().zip(NODE.all()).map(|(of, node)| of as f64 / node as f64);
        shares.take(3).collect::<Vec<_>>().try_into().unwrap()
    };
    let size = |of: &Resources| share(of).iter().sum::<f64>();
    let mut shapes: Vec<Resources> = requests.iter().map(|request| request.needs).collect();
    shapes.sort_by(|a, b| size(b).total_cmp(&size(a)));
    let mut left = vec![NODE.all(); NODES];
    let mut placed = Vec::new();
    for shape in shapes {
        let fits =
            |left: &&mut [u64; 4]| left.iter().zip(shape.all()).all(|(left, needs)| *left >= needs);
        let room = |left: &&mut [u64; 4]| size(&Resources::of(**left));
        let best = left.iter_mut().filter(fits).min_by(|a, b| room(a).total_cmp(&room(b)));
        if let Some(best) = best {
            best.iter_mut().zip(shape.all()).for_each(|(left, needs)| *left -= needs);
            placed.push(shape);
        }
    }
    density(&placed)
}

/// Each starts from an image that is drawn.
fn start_from_images(requests: &mut [PlaceRequest], seed: u64) {
    let (chance, zipf) = (&mut Chance::new(seed, "images"), Zipf::new(IMAGES));
    for request in requests {
        let (image, bytes) = image(zipf.draw(chance));
        (request.image, request.image_bytes) = (Some(image), bytes);
    }
}

#[test]
fn as_much_is_placed_as_one_who_knows_all_before_could_place() {
    for shapes in Shapes::ALL {
        for seed in 0..SEEDS {
            let mut requests = stream(shapes, NODES, TIMES, seed);
            let (n, offline) = (requests.len(), best_fit_decreasing(&requests));
            let online = as_decided(&requests);
            start_from_images(&mut requests, seed);
            let with_images = as_decided(&requests);
            println!(
                "{shapes:?} seed {seed}: of {n} requests best-fit-decreasing places {offline:.3} of the fleet; \
                 as decided {:.3} of that, with images {:.3}",
                online / offline,
                with_images / offline,
            );
            assert!(online.min(with_images) / offline >= 0.95, "{shapes:?} seed {seed}");
        }
    }
}

/// Bytes of images that come to nodes that do not have them, as instances come and go.
fn moved(seed: u64, weights: Weights) -> u64 {
    let (chance, zipf) = (&mut Chance::new(seed, "images"), Zipf::new(IMAGES));
    let (mut view, policy) = (view(NODES), policy(weights));
    let mut held: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    let (mut moved, mut alive) = (0, Vec::new());
    for n in 0..4000 {
        let rank = zipf.draw(chance);
        let (image, bytes) = image(rank);
        // A sixteenth of a node.
        let mut request = PlaceRequest::new(
            format!("vm-{n}"),
            Resources { cpu_milli: 4000, memory: 16 << 30, disk: 256 << 30, network: 0 },
        );
        (request.image, request.image_bytes) = (Some(image), bytes);
        let decision = place(&mut view, &request, &policy).unwrap();
        let node = decision.chosen.expect("half of the fleet is free").node;
        let there = held.entry(node).or_default();
        if !there.contains(&rank) {
            there.push(rank);
            moved += bytes;
        }
        alive.push(request.id);
        // Half of the fleet is taken; who leaves is drawn.
        if alive.len() > NODES * 8 {
            let gone = chance.within(0..alive.len() as u64) as usize;
            view.release(&alive.swap_remove(gone));
        }
    }
    moved
}

#[test]
fn where_images_are_known_half_of_their_bytes_stay_where_they_are() {
    for seed in 0..SEEDS {
        let (aware, blind) = (Weights::default(), Weights { image: 0.0, ..Weights::default() });
        let (aware, blind) = (moved(seed, aware), moved(seed, blind));
        let ratio = aware as f64 / blind as f64;
        println!(
            "Zipf 1.0 seed {seed}: {} GiB moved, {} GiB blind: {ratio:.3}",
            aware >> 30,
            blind >> 30
        );
        assert!(ratio <= 0.5, "seed {seed}: {ratio}");
    }
}
