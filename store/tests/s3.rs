//! A store in a real S3 server, over HTTP.

mod common;

use common::s3::{KEY, S3, SECRET};
use common::*;
use forebay_store::{IndexPlace, Receiver, Remote, Store, StoreOptions};
use image::Kind;
use tokio::runtime::Handle;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_goes_in_and_comes_out_again() {
    let s3 = S3::start().await;
    let store = s3.open("s3://images/grid").await.unwrap();
    let disk = small_disk();
    assert_eq!(disk.push(&Receiver::new(&store), None).await.unwrap(), 5);
    assert_eq!(Disk::pull(&store, &disk.image()).await.unwrap(), disk);
    assert_eq!(store.verify(&disk.image(), true).await.unwrap().bad, [] as [String; 0]);
    // Another process finds the same, under the same prefix alone.
    let other = s3.open("s3://images/grid").await.unwrap();
    assert_eq!(other.id(), store.id());
    assert_eq!(Disk::pull(&other, &disk.image()).await.unwrap(), disk);
    assert_eq!(s3.open("s3://images/other").await.unwrap().images().await.unwrap(), []);
    assert!(s3.dir.path().join("images/grid").is_dir());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_credentials_buckets_and_urls_are_refused_by_name() {
    let s3 = S3::start().await;
    let e = s3.open_as("s3://images/grid", KEY, "wrong").await.unwrap_err();
    assert_eq!(e.kind(), Kind::Denied, "{e}");
    assert!(e.to_string().contains("s3://images/grid"), "{e}");
    assert!(e.to_string().contains("AWS_SECRET_ACCESS_KEY"), "{e}");
    let e = s3.open_as("s3://images/grid", "nobody", "wrong").await.unwrap_err();
    assert_eq!(e.kind(), Kind::Denied, "{e}");
    assert!(e.to_string().contains("credentials file"), "{e}");
    let e = s3.open("s3://nowhere/grid").await.unwrap_err();
    assert_eq!(e.kind(), Kind::Invalid, "{e}");
    assert!(e.to_string().contains("s3://nowhere/grid") && e.to_string().contains("bucket"), "{e}");
    for url in ["ftp://images/grid", "images", "s3://"] {
        let e = s3.open(url).await.unwrap_err();
        assert_eq!(e.kind(), Kind::Invalid, "{url}: {e}");
        assert!(e.to_string().contains(url), "{e}");
    }
    assert_eq!(std::fs::read_dir(s3.dir.path()).unwrap().count(), 1, "nothing was made");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_come_from_a_credentials_file() {
    let s3 = S3::start().await;
    let file = s3.dir.path().join("credentials");
    let text = format!("[grid]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n");
    std::fs::write(&file, text).unwrap();
    let open = async |profile: &str| {
        let mut settings = s3.settings("", "");
        settings.retain(|(name, _)| !name.contains("_access_key"));
        let file = file.to_str().unwrap().to_owned();
        settings.push(("aws_shared_credentials_file".into(), file));
        settings.push(("aws_profile".into(), profile.into()));
        let options = StoreOptions::system(IndexPlace::Memory);
        Store::open_url("s3://images/grid", &Remote::new(settings), Handle::current(), options)
            .await
    };
    open("grid").await.unwrap();
    let e = open("other").await.unwrap_err();
    assert_eq!(e.kind(), Kind::Invalid, "{e}");
    assert!(e.to_string().contains("[grid]") && !e.to_string().contains(SECRET), "{e}");
}
