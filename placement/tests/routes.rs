//! Every route × every role, by real requests, against the table that is written here.

mod common;

use std::collections::BTreeSet;

use api::grid::Role;
use api::people::PersonRole;
use common::Grid;
use placement::Papers;

/// Who may: `+`; who is refused: `-`. In the guide it is told in words.
const TABLE: &str = "
#                                          nobody node server admin | admin operator read-only
GET    /v1/health                            +     +     +     +        +      +        +
POST   /v1/join                              +     +     +     +        +      +        +
GET    /v1/openapi.json                      -     +     +     +        +      +        +
GET    /v1/placement                         -     +     +     +        +      +        +
GET    /v1/whoami                            -     +     +     +        +      +        +
GET    /v1/caches                            -     +     +     +        +      +        +
PUT    /v1/caches/{name}                     -     -     +     -        -      -        -
DELETE /v1/caches/{name}                     -     -     +     +        +      -        -
POST   /v1/tokens                            -     -     -     +        -      -        -
POST   /v1/people                            -     -     -     +        -      -        -
GET    /v1/people                            -     -     -     +        +      +        +
DELETE /v1/people/{name}                     -     -     -     +        +      -        -
GET    /v1/members                           -     -     -     +        +      +        +
DELETE /v1/members/{name}                    -     -     -     +        +      -        -
GET    /v1/revoked                           -     +     +     +        -      -        -
POST   /v1/renew                             -     +     +     +        -      -        -
GET    /v1/images                            -     +     +     +        +      +        +
GET    /v1/images/{name}                     -     +     +     +        +      +        +
POST   /v1/images/{name}/record              -     +     -     +        +      -        -
GET    /v1/images/{name}/trace               -     +     +     +        +      +        +
POST   /v1/images/{name}/trace               -     +     -     +        -      -        -
POST   /v1/images/{name}/verify              -     +     +     +        +      +        -
PUT    /v1/refs/{ref}                        -     +     -     +        +      -        -
DELETE /v1/refs/{ref}                        -     -     -     +        +      -        -
POST   /v1/tickets                           -     +     +     +        -      -        -
GET    /v1/nodes                             -     +     +     +        +      +        +
GET    /v1/nodes/{name}                      -     +     +     +        +      +        +
DELETE /v1/nodes/{name}                      -     -     -     +        +      -        -
PUT    /v1/nodes/{name}/standing             -     -     -     +        +      +        -
GET    /v1/nodes/{name}/goal                 -     +     +     +        +      +        +
POST   /v1/nodes/{name}/report               -     +     -     +        -      -        -
GET    /v1/nodes/{name}/stats                -     +     +     +        +      +        +
GET    /v1/stats                             -     +     +     +        +      +        +
POST   /v1/place                             -     +     +     +        +      +        +
GET    /v1/reservations                      -     +     +     +        +      +        +
DELETE /v1/reservations/{name}               -     +     -     +        +      +        -
GET    /v1/pools                             -     +     +     +        +      +        +
GET    /v1/pools/{name}                      -     +     +     +        +      +        +
PUT    /v1/pools/{name}                      -     -     -     +        +      +        -
DELETE /v1/pools/{name}                      -     -     -     +        +      +        -
POST   /v1/pools/{name}/claims               -     +     -     +        +      +        -
GET    /v1/keeps                             -     +     +     +        +      +        +
GET    /v1/keeps/{ref}                       -     +     +     +        +      +        +
PUT    /v1/keeps/{ref}                       -     -     -     +        +      +        -
DELETE /v1/keeps/{ref}                       -     -     -     +        +      +        -
GET    /v1/released                          -     +     +     +        +      +        +
GET    /v1/leases                            -     +     +     +        +      +        +
PUT    /v1/leases/{name}                     -     +     -     +        -      -        -
POST   /v1/leases/{name}/transfer            -     +     -     +        -      -        -
POST   /v1/leases/{name}/break               -     -     -     +        +      -        -
GET    /v1/operations                        -     +     +     +        +      +        +
GET    /v1/operations/{name}                 -     +     +     +        +      +        +
POST   /v1/operations/{name}/cancel          -     +     -     +        +      +        -
GET    /v1/audit                             -     -     -     +        +      +        +
GET    /v1/watch                             -     +     +     +        +      +        +
POST   /v1/store/verify                      -     -     -     +        +      -        -
POST   /v1/gc                                -     -     -     +        +      -        -
GET    /v1/cache                             -     +     +     +        +      +        +
GET    /v1/cache/images/{image}              -     +     +     +        +      +        +
DELETE /v1/cache/images/{image}              -     -     -     +        +      +        -
GET    /v1/cache/images/{image}/warm         -     +     +     +        +      +        +
PUT    /v1/cache/images/{image}/warm         -     -     -     +        +      +        -
DELETE /v1/cache/images/{image}/warm         -     -     -     +        +      +        -
PUT    /v1/cache/images/{image}/pin          -     -     -     +        +      +        -
DELETE /v1/cache/images/{image}/pin          -     -     -     +        +      +        -
PUT    /v1/cache/scrub                       -     -     -     +        +      +        -
PUT    /v1/cache/drain                       -     -     -     +        +      +        -
GET    /metrics                              -     +     +     +        +      +        +
";

/// With which right a request is made.
enum Shown {
    Nothing,
    Papers(Papers),
    Token(String),
}

fn rows() -> impl Iterator<Item = (&'static str, &'static str, Vec<bool>)> {
    TABLE.lines().filter(|line| line.contains('/')).map(|line| {
        let mut words = line.split_whitespace();
        let (method, path) = (words.next().unwrap(), words.next().unwrap());
        (method, path, words.map(|word| word == "+").collect())
    })
}

/// A request that nothing but the right can fail by, as far as that is of importance.
fn request(method: &str, path: &str) -> (String, &'static str) {
    let name = match path {
        p if p.starts_with("/v1/caches/") => "c1",
        p if p.starts_with("/v1/nodes/") => "n1",
        _ => "a:1",
    };
    let body = match (method, path) {
        ("PUT", "/v1/caches/{name}") => r#"{"endpoints":["127.0.0.1:1"]}"#,
        ("POST", "/v1/nodes/{name}/report") => r#"{"run":"a","number":1,"goal":0}"#,
        ("PUT", "/v1/leases/{name}") => r#"{"holder":"n1"}"#,
        _ => "{}",
    };
    // Watched, it would have no end.
    let path = path.replace("/v1/watch", "/v1/watch?of=nothing");
    (path.replace("{name}", name).replace("{ref}", "a:1").replace("{image}", "a:1"), body)
}

async fn grid() -> Grid {
    let mut grid = Grid::start().await;
    grid.care = true;
    grid.restart().await;
    grid
}

#[tokio::test]
async fn each_route_is_for_those_whom_the_table_names() {
    let grid = grid().await;
    let shown = [
        Shown::Nothing,
        Shown::Papers(grid.member(Role::Node, "n1")),
        Shown::Papers(grid.member(Role::Server, "c1")),
        Shown::Papers(grid.admin_papers()),
        Shown::Token(grid.person("boss", PersonRole::Admin).await),
        Shown::Token(grid.person("op", PersonRole::Operator).await),
        Shown::Token(grid.person("eye", PersonRole::ReadOnly).await),
    ];
    let mut wrong = Vec::new();
    for (method, path, may) in rows() {
        assert_eq!(may.len(), shown.len(), "{method} {path}");
        let (asked, body) = request(method, path);
        for (at, (shown, may)) in shown.iter().zip(may).enumerate() {
            let (status, answer) = match shown {
                Shown::Nothing => grid.ask(None, method, &asked, body).await,
                Shown::Papers(papers) => grid.ask(Some(papers), method, &asked, body).await,
                Shown::Token(token) => grid.ask_with(token, method, &asked, body).await,
            };
            // A refusal to join says that the token is not known.
            if (status != 403) != may || status == 0 || status == 405 || status >= 500 {
                wrong.push(format!("{method} {path}, column {at}: {status} {answer}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test]
async fn the_table_has_all_routes_and_no_others() {
    let grid = grid().await;
    let (_, text) = grid.ask(Some(&grid.admin_papers()), "GET", "/v1/openapi.json", "").await;
    let text = text.find('{').map(|at| &text[at..=text.rfind('}').unwrap()]).unwrap();
    let document: serde_json::Value = serde_json::from_str(text).unwrap();
    let mut documented = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in item.as_object().unwrap().keys() {
            documented.insert((method.to_uppercase(), path.clone()));
        }
    }
    let written: BTreeSet<_> = rows().map(|(m, p, _)| (m.to_owned(), p.to_owned())).collect();
    assert_eq!(documented, written);
}
