//! A raw file as a vhost-user-blk device, and a driver for such devices that measures them.
//!
//! ```text
//! vhost serve FILE SOCKET [--direct] [--read-only] [--sector 512|4096]
//! vhost load SOCKET [--read|--write] [--random] [--block BYTES] [--depth N] [--seconds N]
//! ```

mod driver;
mod load;
mod serve;

fn main() {
    let mut args = std::env::args().skip(1);
    match args.next().as_deref() {
        Some("serve") => serve::main(args.collect()),
        Some("load") => load::main(&args.collect::<Vec<_>>()),
        _ => {
            eprintln!("usage: vhost serve FILE SOCKET | vhost load SOCKET");
            std::process::exit(2);
        }
    }
}
