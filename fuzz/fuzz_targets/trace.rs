//! Boot traces: what is accepted is canonical. Bytes are tried as they are, and sealed by a CRC32C that is right.
#![no_main]

use image::BootTrace;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let sealed = [data, &crc32c::crc32c(data).to_le_bytes()].concat();
    for bytes in [data, &sealed] {
        if let Ok(trace) = BootTrace::parse(bytes) {
            assert_eq!(trace.to_bytes(), bytes);
            assert!(bytes.len() <= image::trace::MAX_TRACE);
            let touches = trace.touches().to_vec();
            let again = BootTrace::new(*trace.image(), trace.recordings(), touches).unwrap();
            assert_eq!(again, trace);
        }
    }
});
