//! Bytes of an NBD client, from its flags on or after a handshake, in pieces: whatever they are, nothing panics
//! and no memory stays behind.
#![no_main]

use libfuzzer_sys::fuzz_target;
use node::export::nbd::testing::hostile;

fuzz_target!(|data: &[u8]| {
    let Some((&[way, cut], bytes)) = data.split_first_chunk() else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    runtime.expect("a runtime").block_on(hostile::run(way, usize::from(cut) + 1, bytes));
});
