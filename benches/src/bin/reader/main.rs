//! Reads images as nodes do, and does as little as can be with what comes: the load of the measures.
//!
//! ```text
//! reader drain IMAGE DIR…        connects as each of these members of the grid, DIR being its data
//!                                directory, and prints `connected`; then, for every line that it reads,
//!                                each takes every chunk and drops it, all at once
//! reader first IMAGE SOURCE      how long single chunks take, one after the other, to verified bytes
//! reader each IMAGE DIR EVERY COUNT
//!                                the same of one chunk in EVERY, from the first on
//! reader pull IMAGE STORE TO     pulls from a store with nothing in between, unsynced
//! ```
//! IMAGE is a digest. A SOURCE is the data directory of a member, who asks a cache, or the URL of a
//! STORE, whose settings are taken from the environment. Each prints a line of JSON.

mod ask;
mod drain;
mod each;
mod first;
mod way;

use image::Digest;
use serde_json::Value;
use way::Member;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    // A thread that fails must not leave the others waiting.
    std::panic::set_hook(Box::new(|panic| {
        eprintln!("reader: {panic}");
        std::process::exit(1);
    }));
    let image = |text: &str| -> Digest { text.parse().expect("a digest") };
    if let [verb, i, dirs @ ..] = &args[..]
        && verb == "drain"
        && !dirs.is_empty()
    {
        return drain::serve(image(i), dirs);
    }
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let said = match args[..] {
        ["first", i, url] if url.contains("://") => block_on(async {
            let store = way::store(url).await;
            first::measure(&store, image(i)).await
        }),
        ["first", i, dir] => block_on(async {
            let member = Member::of(dir, image(i)).await;
            first::measure(&member.connect(0).await, image(i)).await
        }),
        ["each", i, dir, every, count] => block_on(async {
            let number = |text: &str| text.parse().expect("a number");
            let source = Member::of(dir, image(i)).await.connect(0).await;
            each::measure(&source, image(i), number(every), number(count)).await
        }),
        ["pull", i, url, to] => block_on(way::pull(url, image(i), to.into())),
        _ => panic!(
            "usage: reader drain IMAGE DIR… | first IMAGE SOURCE | each … | pull IMAGE STORE TO"
        ),
    };
    println!("{said}");
}

fn block_on(work: impl Future<Output = Value>) -> Value {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(work)
}
