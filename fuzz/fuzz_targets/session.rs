//! The session state machines by operations: whatever is said in whatever order and pieces, nothing
//! panics and nobody gets a right that was not granted.
#![no_main]

use libfuzzer_sys::fuzz_target;
use stream::session::ops;

fuzz_target!(|data: &[u8]| {
    let Some((which, data)) = data.split_first() else { return };
    let (ops, cuts) = data.split_at(data.len() - data.len() / 4);
    match which % 3 {
        0 => ops::control(data),
        1 => ops::answer(which / 3, ops, cuts),
        _ => ops::upload(ops, cuts),
    }
});
