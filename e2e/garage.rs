//! A grid whose store lies in Garage, a real S3 server: with its path in `FOREBAY_GARAGE`
//! (`cargo install garage --version 2.5.0`).

use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::harness::{Background, Disk, forebay, path, run, until};

const KEY: &str = "GK0123456789abcdef01234567";
const SECRET: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// A port that nobody uses: Garage does not say which it took.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Garage on one node with one bucket; its S3 port.
fn garage(program: &Path, dir: &Path) -> (Background, u16) {
    let [s3, rpc] = [free_port(), free_port()];
    let config = dir.join("garage.toml");
    let text = format!(
        "metadata_dir = \"{dir}/meta\"\ndata_dir = \"{dir}/data\"\ndb_engine = \"sqlite\"\n\
         replication_factor = 1\nrpc_bind_addr = \"127.0.0.1:{rpc}\"\n\
         rpc_public_addr = \"127.0.0.1:{rpc}\"\nrpc_secret = \"{SECRET}\"\n\
         [s3_api]\ns3_region = \"garage\"\napi_bind_addr = \"127.0.0.1:{s3}\"\n",
        dir = dir.display()
    );
    std::fs::write(&config, text).unwrap();
    let mut command = Command::new(program);
    command.arg("-c").arg(&config).args(["server", "--single-node", "--default-bucket"]);
    command.env("GARAGE_DEFAULT_BUCKET", "images").env("GARAGE_DEFAULT_ACCESS_KEY", KEY);
    command.env("GARAGE_DEFAULT_SECRET_KEY", SECRET).stderr(Stdio::null());
    let garage = Background::start(&mut command);
    until("Garage serves", || std::net::TcpStream::connect(("127.0.0.1", s3)).is_ok());
    (garage, s3)
}

/// `up`, with its store in Garage.
fn up(data: &Path, port: u16) -> Background {
    let mut command = forebay(data);
    command.env("AWS_ENDPOINT", format!("http://127.0.0.1:{port}")).env("AWS_ALLOW_HTTP", "true");
    command.env("AWS_REGION", "garage").env("AWS_ACCESS_KEY_ID", KEY);
    command.env("AWS_SECRET_ACCESS_KEY", SECRET);
    command.args(["--json", "up", "--listen", "127.0.0.1:0"]);
    let mut up = Background::start(command.args(["--set", "store.at=s3://images/grid"]));
    assert!(!up.line().is_empty(), "up ended before it served");
    up
}

#[test]
fn a_grid_lives_on_garage() {
    let Some(program) = std::env::var_os("FOREBAY_GARAGE") else {
        println!("left out: needs FOREBAY_GARAGE, the path of Garage's program");
        return;
    };
    let temp = tempfile::tempdir().unwrap();
    let (dir, data) = (temp.path(), temp.path().join("grid"));
    let said = |args: &[&str]| run(forebay(&data).arg("--json").args(args)).json();
    let disks = [("d:1", Disk::new("abc.def..ghia")), ("d:2", Disk::new("abcxdef..yhia"))];

    let (store, port) = garage(Path::new(&program), dir);
    let mut server = up(&data, port);
    for (name, disk) in &disks {
        let raw = dir.join("disk.raw");
        std::fs::write(&raw, &disk.bytes).unwrap();
        said(&["import", path(&raw), name]);
    }
    assert_eq!(server.terminate().1, 0);
    drop(store);

    // What was committed is there after both were started again.
    let (_store, port) = garage(Path::new(&program), dir);
    let mut server = up(&data, port);
    for (name, disk) in &disks {
        let copy = dir.join("copy.raw");
        said(&["pull", name, "--to", path(&copy), "--no-daemon"]);
        assert!(std::fs::read(&copy).unwrap() == disk.bytes, "{name}");
        std::fs::remove_file(&copy).unwrap();
    }
    said(&["rm", "d:1"]);
    said(&["gc"]);
    said(&["store", "verify"]);
    said(&["verify", "d:2"]);
    assert_eq!(server.terminate().1, 0);
}
