//! Whatever comes in, no route fails by a fault of its own: no status of 500 and above but 501, which says what this
//! version does not do.

use api::grid::Role;
use axum::body::Body;
use axum::http::Request;
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use image::Digest;
use proptest::prelude::*;

use super::peer::Peer;
use super::{Limits, ROUTES};
use crate::member::Member;

/// Values that a field may be made of.
fn value() -> impl Strategy<Value = String> {
    let digest = Digest([7; 32]).to_string();
    let leaf = prop_oneof![
        Just("null".to_owned()),
        Just("-1".into()),
        Just("18446744073709551615".into()),
        Just("1e309".into()),
        Just("true".into()),
        Just("[]".into()),
        Just("{}".into()),
        Just("\"\"".into()),
        Just(format!("{digest:?}")),
        Just(format!("{:?}", "0a".repeat(16))),
        Just("\"a:1\"".into()),
        Just("\"n1\"".into()),
        Just("\"n1\"".into()),
        any::<u32>().prop_map(|n| n.to_string()),
        "\\PC{0,12}".prop_map(|text| serde_json::to_string(&text).unwrap()),
        Just(format!("{:?}", "x".repeat(3000))),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3)
                .prop_map(|all| format!("[{}]", all.join(","))),
            (field(), inner).prop_map(|(name, value)| format!("{{{name:?}:{value}}}")),
        ]
    })
}

/// Names of fields that are read somewhere.
fn field() -> impl Strategy<Value = String> {
    let known = [
        "name",
        "role",
        "lifetime_secs",
        "secret",
        "request",
        "endpoints",
        "weight",
        "draining",
        "image",
        "expect",
        "pull",
        "push",
        "domain",
        "parent",
        "kind",
        "run",
        "number",
        "goal",
        "generation",
        "items",
        "ready",
        "disk",
        "leases",
        "released",
        "size",
        "sector",
        "layout",
        "low",
        "target",
        "max",
        "per-node",
        "builds",
        "volume",
        "node",
        "only",
        "holder",
        "called",
        "epoch",
        "to",
        "why",
        "at-once",
        "deep",
        "sample",
        "seed",
        "dry_run",
        "grace",
        "labels",
        "os",
        "trace",
        "rate",
        "drain",
    ];
    prop::sample::select(known.to_vec()).prop_map(str::to_owned)
}

fn body() -> impl Strategy<Value = String> {
    let object = prop::collection::vec((field(), value()), 0..8).prop_map(|fields| {
        let fields = fields.iter().map(|(name, value)| format!("{name:?}:{value}"));
        format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
    });
    // Such as some routes take, so that what is behind the first look is looked at, too.
    let good = prop::sample::select(vec![
        r#"{"size":1048576,"low":1,"target":2}"#,
        r#"{"request":"0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a","volume":"v"}"#,
        r#"{"run":"a","number":1,"goal":0}"#,
        r#"{"holder":"n1"}"#,
        r#"{"epoch":1,"to":"n1"}"#,
        r#"{"why":"x","at-once":true}"#,
        r#"{"name":"n1","role":"admin","lifetime_secs":60}"#,
    ]);
    prop_oneof![4 => object, 2 => good.prop_map(str::to_owned), 1 => "\\PC{0,40}"]
}

/// One segment of a path.
fn segment() -> impl Strategy<Value = String> {
    let bytes = prop::collection::vec(any::<u8>(), 1..12);
    let hostile = bytes.prop_map(|all| all.iter().map(|b| format!("%{b:02x}")).collect());
    let digest = Digest([7; 32]).to_string();
    let known = ["n1", "a:1", "0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a", &digest, "%2e%2e", "%00"];
    let known: Vec<String> = known.into_iter().map(str::to_owned).collect();
    prop_oneof![3 => prop::sample::select(known), 1 => hostile]
}

fn query() -> impl Strategy<Value = String> {
    let name = ["wait", "limit", "after", "of", "expect", "ancestors", "x"];
    let text = ["0", "1", "-1", "99999999999999999999", "00", "%00", "true", "pools", "zz", ""];
    let pair = (prop::sample::select(name.to_vec()), prop::sample::select(text.to_vec()));
    prop::collection::vec(pair, 0..3).prop_map(|pairs| {
        let pairs = pairs.into_iter().map(|(name, text)| match (name, text) {
            // Time is no part of this.
            ("wait", _) => "wait=0".to_owned(),
            (name, text) => format!("{name}={text}"),
        });
        pairs.collect::<Vec<_>>().join("&")
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn no_route_fails_whatever_comes(
        asked in prop::collection::vec((0..ROUTES.len(), segment(), query(), body()), 60),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let app = crate::tests::app(Limits::default()).await;
            let router = TowerToHyperService::new(super::router(app));
            let nobody = Peer::new(([127, 0, 0, 1], 1).into(), None, "grid");
            let (grid, holder) = ("grid".to_owned(), Digest([1; 32]));
            let boss = Member { grid, role: Role::Admin, name: "boss".into(), holder };
            for (at, segment, query, body) in asked {
                let (method, path, _) = ROUTES[at];
                let path = path.replace("{name}", &segment).replace("{ref}", &segment);
                let request = Request::builder().method(method).uri(format!("{path}?{query}"));
                let Ok(mut request) =
                    request.header("content-type", "application/json").body(Body::from(body.clone()))
                else {
                    continue;
                };
                request.extensions_mut().insert(nobody.as_member(boss.clone()));
                let answer = router.call(request).await.unwrap();
                let status = answer.status().as_u16();
                assert!(status < 500 || status == 501, "{status}: {method} {path}?{query} {body}");
            }
        });
    }
}
