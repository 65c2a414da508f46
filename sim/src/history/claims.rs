//! Claims: each ready volume is given once, each request has one volume at most.
//!
//! That holds in any order of the operations, or in none, so no order is searched for.

use std::collections::BTreeMap;

/// A volume that somebody was given.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Given {
    /// By whose request.
    pub request: String,
    /// On which node.
    pub node: String,
    /// Its id.
    pub volume: String,
}

/// What is wrong; nothing, if all is right. `answered` is what clients were told, as often as they were told it;
/// `there` what nodes have given away, each once.
pub fn check(answered: &[Given], there: &[Given]) -> Vec<String> {
    let mut wrong = Vec::new();
    let (mut by_request, mut by_volume) = (BTreeMap::new(), BTreeMap::new());
    for given in there {
        if let Some(other) = by_request.insert(&given.request, given) {
            wrong.push(format!("request {} has two volumes: {other:?}, {given:?}", given.request));
        }
        if let Some(other) = by_volume.insert(&given.volume, given) {
            wrong.push(format!("volume {} was given twice: {other:?}, {given:?}", given.volume));
        }
    }
    for given in answered {
        if by_request.get(&given.request) != Some(&given) {
            wrong.push(format!("somebody was told {given:?}, and no node has given that"));
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(request: &str, volume: &str) -> Given {
        Given { request: request.into(), node: "n".into(), volume: volume.into() }
    }

    #[test]
    fn a_volume_is_given_once_and_a_request_served_once() {
        let there = [given("1", "a"), given("2", "b")];
        assert!(check(&[given("1", "a"), given("1", "a")], &there).is_empty());
        for (answered, there, says) in [
            (vec![], vec![given("1", "a"), given("1", "b")], "has two volumes"),
            (vec![], vec![given("1", "a"), given("2", "a")], "given twice"),
            (vec![given("1", "b")], there.to_vec(), "no node has given that"),
        ] {
            let wrong = check(&answered, &there);
            assert!(wrong.iter().any(|wrong| wrong.contains(says)), "{wrong:?}");
        }
    }
}
