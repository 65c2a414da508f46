//! Long lists, a page at a time.
//!
//! Whoever asks for a list may say how many of it (`limit`) and from where on (`after`, what the page before says is
//! `next`). A cursor is the place of an entry in the order of the list: what is added or removed meanwhile moves nobody
//! else's page. Who says neither gets all of it: earlier versions know no pages, and would take the first for all.

use image::{Error, Kind, Result};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::catalog::{ImageLine, ImageList};
use crate::goal::{NodeInfo, NodeList};
use crate::grid::{CacheInfo, CacheList, MemberInfo, MemberList};
use crate::keep::{KeepInfo, KeepList};
use crate::lease::{LeaseInfo, LeaseList};
use crate::operation::{Operation, OperationList};
use crate::people::{PersonInfo, PersonList};
use crate::pool::{PoolInfo, PoolList};
use crate::released::{ReleasedList, ReleasedOn};

/// Entries of a page of which was not said how long it shall be.
pub const USUAL: u32 = 1000;
/// Longest page.
pub const MOST: u32 = 10_000;

/// Which part of a list is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Page {
    /// At most so many entries: 10,000 at most, 1000 if only `after` is said, all if nothing is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// What follows this: the `next` of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
}

impl Page {
    /// How many entries, and after which place in the order of the list; nothing if all is asked for.
    ///
    /// # Errors
    ///
    /// [`Kind::Invalid`] for a page that there cannot be.
    pub fn asked(&self) -> Result<Option<(usize, String)>> {
        let invalid = |what: String| Err(Error::new(Kind::Invalid, what));
        let limit = match (self.limit, &self.after) {
            (None, None) => return Ok(None),
            (limit, _) => limit.unwrap_or(USUAL),
        };
        if !(1..=MOST).contains(&limit) {
            return invalid(format!("limit: must be 1 to {MOST}"));
        }
        let after = self.after.as_deref().unwrap_or_default();
        match opened(after) {
            Some(place) => Ok(Some((limit as usize, place))),
            None => invalid("after: not the `next` of a page".into()),
        }
    }
}

/// A list of which there are pages, in the order of [`Listed::place`].
pub trait Listed {
    /// What it is a list of.
    type Item;
    /// All that is in it.
    fn items(&mut self) -> &mut Vec<Self::Item>;
    /// The place of an entry: later ones have later texts.
    fn place(item: &Self::Item) -> String;
}

macro_rules! by_name {
    ($list:ty, $item:ty, $field:ident, $place:expr) => {
        impl Listed for $list {
            type Item = $item;
            fn items(&mut self) -> &mut Vec<$item> {
                &mut self.$field
            }
            fn place(item: &$item) -> String {
                let place: fn(&$item) -> String = $place;
                place(item)
            }
        }
    };
}

by_name!(CacheList, CacheInfo, caches, |c| c.name.clone());
by_name!(ImageList, ImageLine, images, |i| i.name.to_string());
by_name!(KeepList, KeepInfo, keeps, |k| k.name.clone());
by_name!(LeaseList, LeaseInfo, leases, |l| l.volume.clone());
by_name!(MemberList, MemberInfo, members, |m| m.name.clone());
by_name!(NodeList, NodeInfo, nodes, |n| n.name.clone());
by_name!(OperationList, Operation, operations, newest_first);
by_name!(PersonList, PersonInfo, people, |p| p.name.clone());
by_name!(ReleasedList, ReleasedOn, released, |r| {
    format!("{:016x}{}/{}", u64::MAX - r.released.ended, r.node, r.released.volume)
});
by_name!(PoolList, PoolInfo, pools, |p| p.name.clone());

/// The newest first, and of one second the greatest id.
fn newest_first(operation: &Operation) -> String {
    let turned = |c: char| char::from_digit(15 - c.to_digit(16).unwrap_or(0), 16).unwrap_or(c);
    let id: String = operation.id.chars().map(turned).collect();
    format!("{:016x}{id}", u64::MAX - operation.created)
}

/// A list, or a page of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Paged<L> {
    /// The list.
    #[serde(flatten)]
    pub list: L,
    /// There is more: what to ask `after` for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

impl<L: Listed> Paged<L> {
    /// The page of a list that was asked for.
    pub fn of(mut list: L, page: &Page) -> Result<Self> {
        let Some((limit, after)) = page.asked()? else { return Ok(Self { list, next: None }) };
        let items = list.items();
        items.sort_by_cached_key(L::place);
        items.retain(|item| L::place(item) > after);
        let more = items.len() > limit;
        items.truncate(limit);
        let next = items.last().filter(|_| more).map(|item| sealed(&L::place(item)));
        Ok(Self { list, next })
    }
}

/// A cursor: nobody is to make one up, and it goes into a URL as it is.
fn sealed(place: &str) -> String {
    place.bytes().map(|b| format!("{b:02x}")).collect()
}

fn opened(cursor: &str) -> Option<String> {
    let digits = cursor.as_bytes();
    if !digits.len().is_multiple_of(2) || digits.len() > 2048 {
        return None;
    }
    let byte = |pair: &[u8]| {
        let digit = |b: u8| char::from(b).to_digit(16);
        u8::try_from(digit(pair[0])? * 16 + digit(pair[1])?).ok()
    };
    let bytes: Option<Vec<u8>> = digits.chunks_exact(2).map(byte).collect();
    String::from_utf8(bytes?).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::operation::OperationState;

    fn operation(created: u64, id: u32) -> Operation {
        Operation {
            id: format!("{id:032x}"),
            kind: "claim".into(),
            object: "pools/web".into(),
            owner: "n1".into(),
            state: OperationState::Queued,
            step: String::new(),
            result: None,
            error: None,
            created,
            ended: None,
        }
    }

    fn page(limit: u32, after: Option<String>) -> Page {
        Page { limit: Some(limit), after }
    }

    #[test]
    fn who_knows_no_pages_gets_all_and_who_asks_wrongly_is_told() {
        let list = OperationList { operations: (0..2000).map(|n| operation(n, 0)).collect() };
        let all = Paged::of(list.clone(), &Page::default()).unwrap();
        assert_eq!((all.list.operations.len(), all.next), (2000, None));
        // And reads a page as the list that it knows.
        let first = Paged::of(list.clone(), &page(10, None)).unwrap();
        let text = serde_json::to_string(&first).unwrap();
        assert_eq!(serde_json::from_str::<OperationList>(&text).unwrap().operations.len(), 10);
        let usual = Paged::of(list.clone(), &Page { limit: None, after: Some(String::new()) });
        assert_eq!(usual.unwrap().list.operations.len(), USUAL as usize);
        for bad in [page(0, None), page(MOST + 1, None), page(1, Some("x".into()))] {
            let error = Paged::of(list.clone(), &bad).unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid);
        }
    }

    proptest! {
        #[test]
        fn pages_together_are_the_list(
            all in prop::collection::btree_set((0u64..5, 0u32..50), 0..60),
            limit in 1u32..8,
            gone in any::<prop::sample::Index>(),
        ) {
            let mut list: Vec<Operation> = all.iter().map(|(at, id)| operation(*at, *id)).collect();
            list.sort_by(|a, b| (b.created, &b.id).cmp(&(a.created, &a.id)));
            let (mut seen, mut after, mut left) = (Vec::new(), None, list.clone());
            loop {
                let all = OperationList { operations: left.clone() };
                let got = Paged::of(all, &page(limit, after.clone())).unwrap();
                seen.extend(got.list.operations);
                let Some(next) = got.next else { break };
                after = Some(next);
                // One that was seen may go meanwhile: nobody else is passed over.
                if let Some(there) = left.iter().position(|o| *o == seen[gone.index(seen.len())]) {
                    left.remove(there);
                }
            }
            prop_assert_eq!(seen, list);
        }
    }
}
