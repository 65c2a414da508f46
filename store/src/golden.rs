//! The stored form of every JSON object, byte for byte. They must load for ever; a change that
//! alters them needs a new format version.

use std::collections::BTreeSet;
use std::fmt::Debug;

use image::Digest;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::condemned::{Condemned, Deleting, List};
use crate::marker::{MARKER, Marker};
use crate::records::{REF_MOVE, RefMove};
use crate::rewrites::Rewrite;
use crate::sealed;
use crate::session::{Renewal, SESSION};

fn check<T: Serialize + DeserializeOwned + Debug>(what: &'static str, body: &T, golden: &str) {
    let bytes = sealed::seal(what, body);
    assert_eq!(std::str::from_utf8(&bytes).unwrap(), golden, "version bump required");
    let loaded: T = sealed::open(what, golden.as_bytes()).unwrap();
    assert_eq!(format!("{loaded:?}"), format!("{body:?}"));
}

#[test]
fn markers() {
    let marker = Marker { store: "0123456789abcdef0123456789abcdef".into() };
    check(
        MARKER,
        &marker,
        r#"{"body":{"store":"0123456789abcdef0123456789abcdef"},"check":"3a341ffac3ba12e6","format":1,"what":"forebay store"}"#,
    );
}

#[test]
fn sessions() {
    let holds = BTreeSet::from(["list-0000".to_owned()]);
    let renewal = Renewal { started: 1_700_000_000, expires: 1_700_000_600, holds };
    check(
        SESSION,
        &renewal,
        r#"{"body":{"expires":1700000600,"holds":["list-0000"],"started":1700000000},"check":"f8cfafdabf560e9d","format":1,"what":"session"}"#,
    );
}

#[test]
fn lists_of_gc() {
    let keys = vec!["packs/00112233445566778899aabbccddeeff".to_owned()];
    check(
        Condemned::WHAT,
        &Condemned { at: 1_700_000_000, keys },
        r#"{"body":{"at":1700000000,"keys":["packs/00112233445566778899aabbccddeeff"]},"check":"965e023133091a65","format":1,"what":"condemned list"}"#,
    );
    let lists = vec!["list-0000".to_owned()];
    check(
        Deleting::WHAT,
        &Deleting { at: 1_700_000_000, lists },
        r#"{"body":{"at":1700000000,"lists":["list-0000"]},"check":"6ab2f231eece5974","format":1,"what":"mark of a gc run"}"#,
    );
}

#[test]
fn rewritings() {
    let from = vec!["00112233445566778899aabbccddeeff".to_owned()];
    let rewrite = Rewrite { at: 1_700_000_000, from, to: "ff".repeat(16) };
    check(
        Rewrite::WHAT,
        &rewrite,
        r#"{"body":{"at":1700000000,"from":["00112233445566778899aabbccddeeff"],"to":"ffffffffffffffffffffffffffffffff"},"check":"6e506c018f1ddb4b","format":1,"what":"rewriting of packs"}"#,
    );
}

#[test]
fn ref_moves() {
    let name = "acme/debian:12".parse().unwrap();
    let image = Some(Digest([0xab; 32]));
    let ref_move = RefMove { seq: 7, name, image, at: 1_700_000_000 };
    check(
        REF_MOVE,
        &ref_move,
        r#"{"body":{"at":1700000000,"image":"abababababababababababababababababababababababababababababababab","ref":"acme/debian:12","seq":7},"check":"b11128a4dd758109","format":1,"what":"ref move"}"#,
    );
    let deleted = RefMove { image: None, ..ref_move };
    check(
        REF_MOVE,
        &deleted,
        r#"{"body":{"at":1700000000,"image":null,"ref":"acme/debian:12","seq":7},"check":"3723a5929717155a","format":1,"what":"ref move"}"#,
    );
}
