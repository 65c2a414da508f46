//! The list of routes, the router and the document say the same.

use axum::body::Body;
use axum::http::Request;
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use utoipa::OpenApi;

use super::peer::Peer;
use super::{Limits, ROUTES, care, document::Document};

/// Method and path of each operation in the document.
fn documented() -> Vec<(String, String)> {
    let document = serde_json::to_value(Document::openapi()).unwrap();
    let paths = document["paths"].as_object().unwrap().clone();
    let methods = |(path, item): (String, serde_json::Value)| {
        let methods =
            item.as_object().unwrap().keys().map(|m| m.to_uppercase()).collect::<Vec<_>>();
        methods.into_iter().map(move |method| (method, path.clone()))
    };
    paths.into_iter().flat_map(methods).collect()
}

#[test]
fn each_route_is_in_the_document_and_each_operation_is_a_route() {
    let mut documented = documented();
    let mut listed: Vec<_> = ROUTES
        .iter()
        .chain(care::ROUTES)
        .map(|(m, p, _)| ((*m).to_owned(), (*p).to_owned()))
        .collect();
    documented.sort();
    listed.sort();
    assert_eq!(documented, listed);
}

#[test]
fn whatever_the_document_refers_to_is_in_it() {
    let text = serde_json::to_string(&Document::openapi()).unwrap();
    let document: serde_json::Value = serde_json::from_str(&text).unwrap();
    let mut seen = 0;
    for reference in text.split("\"$ref\":\"#/components/schemas/").skip(1) {
        let name = reference.split('"').next().unwrap();
        assert!(document["components"]["schemas"].get(name).is_some(), "{name}");
        seen += 1;
    }
    assert!(seen > 20);
    let expect = &document["components"]["schemas"]["Expect"]["oneOf"];
    assert_eq!(expect[0]["enum"], serde_json::json!(["anything", "absent"]));
}

#[tokio::test]
async fn each_listed_route_is_routed_and_refuses_nobody_but_by_the_list() {
    let app = super::super::tests::app(Limits::default()).await;
    let router = TowerToHyperService::new(super::router(app));
    for (method, path, access) in ROUTES {
        let path = path.replace("{name}", "a:1").replace("{ref}", "a:1");
        let mut request =
            Request::builder().method(*method).uri(&path).body(Body::empty()).unwrap();
        let nobody = Peer::new(([127, 0, 0, 1], 1).into(), None, "grid");
        request.extensions_mut().insert(nobody);
        let status = router.call(request).await.unwrap().status().as_u16();
        match access {
            super::Access::Anybody => assert!([200, 400].contains(&status), "{path}: {status}"),
            _ => assert_eq!(status, 403, "{method} {path}"),
        }
    }
}
