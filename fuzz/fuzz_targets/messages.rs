//! Every message of the protocol: what is accepted says the same when it is written again.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use stream::messages::decode;

fuzz_target!(|data: &[u8]| {
    let mut rest = Bytes::copy_from_slice(data);
    while let Ok((message, len)) = decode(&rest) {
        let (same, same_len) = decode(&message.encode()).unwrap();
        assert_eq!(format!("{same:?}"), format!("{message:?}"));
        assert!(same_len > 0 && len <= rest.len());
        rest = rest.slice(len..);
    }
});
