//! Loads a vhost-user-blk device as one guest with one queue would, and says how fast it is.

use std::time::{Duration, Instant};

use virtio_bindings::virtio_blk as blk;

use crate::driver::Driver;

/// What is asked of the device.
struct Load {
    write: bool,
    random: bool,
    block: u32,
    depth: u16,
    time: Duration,
}

#[expect(clippy::disallowed_methods, reason = "this measures time")]
fn now() -> Instant {
    Instant::now()
}

pub fn main(args: &[String]) {
    let flag = |name: &str| args.iter().any(|arg| arg == name);
    let number = |name: &str, usual: u64| {
        let given = args.iter().skip_while(|arg| *arg != name).nth(1);
        given.map_or(usual, |n| n.parse().expect("a number"))
    };
    let load = Load {
        write: flag("--write"),
        random: flag("--random"),
        block: number("--block", 4096) as u32,
        depth: number("--depth", 32) as u16,
        time: Duration::from_secs(number("--seconds", 5)),
    };
    let mut driver = Driver::connect(&args[0], load.depth, load.block);
    // Not counted: caches fill, mappings are made.
    run(&mut driver, &load, load.time / 5);
    let (count, took) = run(&mut driver, &load, load.time);
    let rate = count as f64 / took.as_secs_f64();
    println!("{rate:.0} /s, {:.0} MB/s", rate * f64::from(load.block) / 1e6);
}

/// Keeps as many requests under way as are asked for, for a time. Gives how many there were.
fn run(driver: &mut Driver, load: &Load, time: Duration) -> (u64, Duration) {
    let blocks = driver.capacity / u64::from(load.block);
    let sectors = u64::from(load.block) / 512;
    let kind = if load.write { blk::VIRTIO_BLK_T_OUT } else { blk::VIRTIO_BLK_T_IN };
    let (mut random, mut next, mut count) = (1u64, 0, 0);
    let mut place = || {
        next = if load.random { step(&mut random) % blocks } else { (next + 1) % blocks };
        next * sectors
    };
    let start = now();
    (0..load.depth).for_each(|slot| driver.submit(slot, kind, place()));
    driver.kick();
    let mut left = load.depth;
    let mut answered = Vec::new();
    while left > 0 {
        driver.wait(&mut answered);
        let on = now() - start < time;
        for slot in answered.drain(..) {
            count += 1;
            match on {
                true => driver.submit(slot, kind, place()),
                false => left -= 1,
            }
        }
        driver.kick();
    }
    (count, now() - start)
}

fn step(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}
