//! `forebay-sim`: runs many seeds, or one of them again.

use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use clap::Parser;
use forebay_sim::{Bug, Counts, Report, Scenario, leases, pools, run};

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
    plant: Option<Plant>,
    /// Threads, each with a run of its own at a time; as many as there are cores unless given.
    #[arg(long)]
    jobs: Option<usize>,
}

/// Of so many seeds the search of one may be given up.
const UNDECIDED: u64 = 50;

/// A bug of one of the worlds.
#[derive(Clone, Copy)]
enum Plant {
    Pulls(Bug),
    Leases(leases::Bug),
    Pools(pools::Bug),
}

impl FromStr for Plant {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let pulls = name.parse().map(Self::Pulls);
        let leases = pulls.or_else(|not| {
            name.parse().map(Self::Leases).map_err(|nor| format!("{not}; of leases {nor}"))
        });
        leases.or_else(|not| {
            name.parse().map(Self::Pools).map_err(|nor| format!("{not}; of pools {nor}"))
        })
    }
}

impl Plant {
    fn of_pulls(self) -> Option<Bug> {
        if let Self::Pulls(bug) = self { Some(bug) } else { None }
    }

    fn of_leases(self) -> Option<leases::Bug> {
        if let Self::Leases(bug) = self { Some(bug) } else { None }
    }

    fn of_pools(self) -> Option<pools::Bug> {
        if let Self::Pools(bug) = self { Some(bug) } else { None }
    }

    fn name(self) -> String {
        match self {
            Self::Pulls(bug) => bug.to_string(),
            Self::Leases(bug) => bug.to_string(),
            Self::Pools(bug) => bug.to_string(),
        }
    }
}

impl Args {
    fn pulls(&self, seed: u64, print: bool) -> Report {
        run(seed, self.plant.and_then(Plant::of_pulls), print)
    }

    fn leases(&self, seed: u64, print: bool) -> leases::Report {
        leases::run(seed, self.plant.and_then(Plant::of_leases), print)
    }

    fn pools(&self, seed: u64, print: bool) -> pools::Report {
        pools::run(seed, self.plant.and_then(Plant::of_pools), print)
    }
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
    let report = args.pulls(seed, args.trace);
    report.violations.iter().for_each(|violation| println!("{violation}"));
    println!("{:?}", report.counts);
    let Report { digest, events, time, .. } = &report;
    println!("seed {seed}: digest {digest}, {events} events in {:.3} s", time.as_secs_f64());
    let of_leases = args.leases(seed, args.trace);
    of_leases.violations.iter().for_each(|violation| println!("{violation}"));
    println!("{:?}", of_leases.counts);
    println!("seed {seed}, leases: digest {}", of_leases.digest);
    let of_pools = args.pools(seed, args.trace);
    of_pools.violations.iter().for_each(|violation| println!("{violation}"));
    println!("{:?}", of_pools.counts);
    println!("seed {seed}, pools: digest {}", of_pools.digest);
    let all = [&of_leases.violations, &of_pools.violations];
    let holds = report.violations.is_empty() && all.iter().all(|of| of.is_empty());
    if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn many(args: &Args) -> ExitCode {
    let jobs = args
        .jobs
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get));
    let next = AtomicU64::new(args.first);
    let failed = Mutex::new(Vec::new());
    let counts =
        Mutex::new((Counts::default(), leases::Counts::default(), pools::Counts::default()));
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= args.first + args.seeds {
                return;
            }
            let (report, of_leases) = (args.pulls(seed, false), args.leases(seed, false));
            let of_pools = args.pools(seed, false);
            {
                let mut counts = counts.lock().expect("no thread panics with it");
                counts.0.add(&report.counts);
                counts.1.add(&of_leases.counts);
                counts.2.add(&of_pools.counts);
            }
            let pulls = report.violations.iter().map(ToString::to_string);
            let violations = pulls.chain(of_leases.violations).chain(of_pools.violations);
            let violations: Vec<String> = violations.collect();
            if !violations.is_empty() {
                tell(seed, &violations, args.plant);
                failed.lock().expect("no thread panics with it").push(seed);
            }
        }
    };
    std::thread::scope(|scope| (0..jobs).for_each(|_| drop(scope.spawn(work))));
    let failed = failed.into_inner().expect("all threads have ended");
    let counts = counts.into_inner().expect("all threads have ended");
    println!("{counts:#?}");
    println!("{} seeds from {}, {} failed", args.seeds, args.first, failed.len());
    let undecided = counts.1.undecided.max(counts.2.undecided);
    if undecided * UNDECIDED > args.seeds {
        println!("of {undecided} seeds nothing is shown: their searches were given up");
        return ExitCode::FAILURE;
    }
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn tell(seed: u64, violations: &[String], plant: Option<Plant>) {
    println!("seed {seed}:");
    violations.iter().for_each(|violation| println!("  {violation}"));
    let plant = plant.map_or_else(String::new, |bug| format!("--plant {} ", bug.name()));
    println!("  again: cargo run --release -p forebay-sim -- {plant}--seed {seed} --trace");
}
