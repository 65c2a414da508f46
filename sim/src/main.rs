//! `forebay-sim`: runs many seeds, or one of them again.

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use clap::Parser;
use forebay_sim::{Bug, Counts, Report, Scenario, run};

/// Runs Forebay in simulated worlds, each drawn from a seed.
#[derive(Parser)]
struct Args {
    /// How many seeds.
    #[arg(long, default_value_t = 500)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Runs this one alone, and prints the digest of its trace.
    #[arg(long)]
    seed: Option<u64>,
    /// With --seed: prints every event.
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Plants a bug.
    #[arg(long)]
    plant: Option<Bug>,
    /// Threads, each with a run of its own at a time; as many as there are cores unless given.
    #[arg(long)]
    jobs: Option<usize>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    // What the crates say goes to standard error where RUST_LOG asks for it.
    let filter = std::env::var("RUST_LOG").unwrap_or_else(|_| "off".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match args.seed {
        Some(seed) => one(seed, &args),
        None => many(&args),
    }
}

fn one(seed: u64, args: &Args) -> ExitCode {
    if args.trace {
        println!("{:#?}", Scenario::of(seed));
    }
    let report = run(seed, args.plant, args.trace);
    report.violations.iter().for_each(|violation| println!("{violation}"));
    println!("{:?}", report.counts);
    let Report { digest, events, time, .. } = &report;
    println!("seed {seed}: digest {digest}, {events} events in {:.3} s", time.as_secs_f64());
    if report.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn many(args: &Args) -> ExitCode {
    let jobs = args
        .jobs
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get));
    let next = AtomicU64::new(args.first);
    let (counts, failed) = (Mutex::new(Counts::default()), Mutex::new(Vec::new()));
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= args.first + args.seeds {
                return;
            }
            let report = run(seed, args.plant, false);
            counts.lock().expect("no thread panics with it").add(&report.counts);
            if !report.violations.is_empty() {
                tell(&report, args.plant);
                failed.lock().expect("no thread panics with it").push(seed);
            }
        }
    };
    std::thread::scope(|scope| (0..jobs).for_each(|_| drop(scope.spawn(work))));
    let failed = failed.into_inner().expect("all threads have ended");
    println!("{:#?}", counts.into_inner().expect("all threads have ended"));
    println!("{} seeds from {}, {} failed", args.seeds, args.first, failed.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn tell(report: &Report, plant: Option<Bug>) {
    println!("seed {}:", report.seed);
    report.violations.iter().for_each(|violation| println!("  {violation}"));
    let plant = plant.map_or_else(String::new, |bug| format!("--plant {bug} "));
    let seed = report.seed;
    println!("  again: cargo run --release -p forebay-sim -- {plant}--seed {seed} --trace");
}
