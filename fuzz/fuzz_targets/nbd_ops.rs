//! Operations of an NBD client against a slow and failing disk: what it reads is what an array of bytes would
//! hold, in every framing and order.
#![no_main]

use libfuzzer_sys::fuzz_target;
use node::export::nbd::testing::model;

fuzz_target!(|script: &[u8]| {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    runtime.expect("a runtime").block_on(model::run(script));
});
