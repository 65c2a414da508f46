//! `forebay images --tree`: images below those that they were made from.

use std::collections::{BTreeMap, BTreeSet};

use api::catalog::{Ancestor, ImageLine, ImageList};
use image::{Digest, Result};

use super::images::matches;
use super::with_grid;
use crate::cli::ImagesArgs;
use crate::config::Config;
use crate::output::{Output, bytes, say, table, time};
use crate::report::{Lineage, LineageLine};

/// Levels that are drawn: what lies deeper is told by its number.
const DRAWN: usize = 24;

/// Runs the command.
pub fn run(config: &Config, args: &ImagesArgs, output: Output) -> Result<()> {
    let list = with_grid(config, |grid| async move { grid.placement.lineage().await })?;
    let mut nodes = nodes(list);
    if let Some(filter) = &args.filter {
        keep_related(&mut nodes, filter);
        if nodes.is_empty() {
            say(format!("no image has a name like {filter}"));
        }
    }
    output.result(&Lineage { images: in_order(nodes) }, human)
}

/// Every image once. Of a parent that placement does not describe nothing is known but that it was one.
fn nodes(list: ImageList) -> BTreeMap<Digest, LineageLine> {
    let mut nodes: BTreeMap<Digest, LineageLine> = BTreeMap::new();
    for line in list.images {
        let name = line.name.clone();
        nodes.entry(line.image).or_insert_with(|| named(line)).refs.push(name);
    }
    for ancestor in list.ancestors.into_iter().flatten() {
        nodes.entry(ancestor.image).or_insert_with(|| unnamed(ancestor));
    }
    let parents: BTreeSet<Digest> = nodes.values().filter_map(|node| node.parent).collect();
    for parent in parents {
        nodes.entry(parent).or_insert_with(|| unnamed(Ancestor::unknown(parent)));
    }
    nodes
}

fn named(line: ImageLine) -> LineageLine {
    LineageLine {
        image: line.image,
        depth: 0,
        parent: line.parent,
        refs: Vec::new(),
        gone: false,
        created: line.created,
        os: line.os,
        kind: line.kind,
        size: line.size,
        stored: line.stored,
        problem: line.problem,
    }
}

fn unnamed(ancestor: Ancestor) -> LineageLine {
    LineageLine {
        image: ancestor.image,
        depth: 0,
        parent: ancestor.parent,
        refs: Vec::new(),
        gone: ancestor.gone,
        created: ancestor.created,
        os: ancestor.os,
        kind: ancestor.kind,
        size: ancestor.size,
        stored: ancestor.stored,
        problem: ancestor.problem,
    }
}

/// Leaves what has a name like the filter, what that was made from, and what was made from it.
fn keep_related(nodes: &mut BTreeMap<Digest, LineageLine>, filter: &str) {
    let like = |node: &LineageLine| node.refs.iter().any(|r| matches(filter, &r.to_string()));
    let children = children(nodes);
    let chosen: Vec<Digest> = nodes.values().filter(|n| like(n)).map(|n| n.image).collect();
    let mut kept = BTreeSet::new();
    for image in &chosen {
        let mut at = Some(*image);
        while let Some(image) = at.filter(|image| kept.insert(*image)) {
            at = nodes.get(&image).and_then(|node| node.parent);
        }
    }
    let mut below = BTreeSet::new();
    let mut left = chosen;
    while let Some(image) = left.pop() {
        if below.insert(image) {
            left.extend(children.get(&image).into_iter().flatten());
        }
    }
    nodes.retain(|image, _| kept.contains(image) || below.contains(image));
}

fn children(nodes: &BTreeMap<Digest, LineageLine>) -> BTreeMap<Digest, Vec<Digest>> {
    let mut children: BTreeMap<Digest, Vec<Digest>> = BTreeMap::new();
    for node in nodes.values() {
        if let Some(parent) = node.parent.filter(|parent| nodes.contains_key(parent)) {
            children.entry(parent).or_default().push(node.image);
        }
    }
    children
}

/// Parents before their children, siblings by their age. Records can make a circle: then one of it stands at the top.
fn in_order(mut nodes: BTreeMap<Digest, LineageLine>) -> Vec<LineageLine> {
    let mut children = children(&nodes);
    let age = |nodes: &BTreeMap<Digest, LineageLine>, image: &Digest| {
        let node = nodes.get(image);
        let name = node.and_then(|node| node.refs.first().map(ToString::to_string));
        // Of what nobody knows when it was made, last.
        (node.and_then(|node| node.created).unwrap_or(u64::MAX), name, *image)
    };
    children.values_mut().for_each(|all| all.sort_by_key(|image| age(&nodes, image)));
    let is_root = |node: &&LineageLine| node.parent.is_none_or(|p| !nodes.contains_key(&p));
    let mut roots: Vec<Digest> = nodes.values().filter(is_root).map(|node| node.image).collect();
    roots.sort_by_key(|image| {
        let (created, name, image) = age(&nodes, image);
        (name, created, image)
    });
    let mut order = Vec::with_capacity(nodes.len());
    let mut rest = roots.into_iter();
    loop {
        // What no root leads to is in a circle, or hangs on one.
        let next = rest.next().or_else(|| nodes.keys().next().copied());
        let Some(root) = next else { return order };
        let mut left = vec![(root, 0)];
        while let Some((image, depth)) = left.pop() {
            let Some(node) = nodes.remove(&image) else { continue };
            order.push(LineageLine { depth, ..node });
            let below = children.remove(&image).unwrap_or_default();
            left.extend(below.into_iter().rev().map(|child| (child, depth + 1)));
        }
    }
}

fn human(lineage: &Lineage) -> String {
    let head = ["IMAGE", "REFS", "SIZE", "STORED", "CREATED", "KIND"].map(str::to_owned).to_vec();
    let drawn = drawn(&lineage.images);
    let rows = lineage.images.iter().zip(drawn).map(|(node, drawn)| {
        let refs: Vec<_> = node.refs.iter().map(ToString::to_string).collect();
        let refs = match (refs.is_empty(), node.gone) {
            (_, true) => "(gone)".to_owned(),
            (true, false) => "(no name)".to_owned(),
            (false, false) => refs.join(", "),
        };
        let known = |text: String| if node.size == 0 { String::new() } else { text };
        let kind = node.kind.and_then(|k| serde_json::to_value(k).ok());
        let kind = kind.as_ref().and_then(|k| k.as_str()).unwrap_or_default().to_owned();
        let created = node.created.map(time).unwrap_or_default();
        let image = drawn + &node.image.to_string();
        vec![image, refs, known(bytes(node.size)), known(bytes(node.stored)), created, kind]
    });
    table(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
}

/// The lines in front of each image.
fn drawn(images: &[LineageLine]) -> Vec<String> {
    // From the last to the first: at each level, whether a sibling follows.
    let mut follows: Vec<bool> = Vec::new();
    let mut drawn: Vec<String> =
        images.iter().rev().map(|node| prefix(node.depth, &mut follows)).collect();
    drawn.reverse();
    drawn
}

fn prefix(depth: usize, follows: &mut Vec<bool>) -> String {
    follows.truncate(depth + 1);
    follows.resize(depth + 1, false);
    let own = std::mem::replace(&mut follows[depth], true);
    let arm = match own {
        _ if depth == 0 => "",
        true => "├─ ",
        false => "└─ ",
    };
    if depth > DRAWN {
        return format!("… {depth} {arm}");
    }
    let above = follows.iter().take(depth).skip(1);
    above.map(|more| if *more { "│  " } else { "   " }).chain([arm]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(n: u8) -> Digest {
        Digest([n; 32])
    }

    fn list(images: &[(&str, u8, Option<u8>)], ancestors: &[(u8, Option<u8>, bool)]) -> ImageList {
        let line = |(name, image, parent): &(&str, u8, Option<u8>)| {
            serde_json::from_value(serde_json::json!({
                "ref": name, "image": digest(*image), "size": 1, "stored": 1,
                "created": image, "os": null, "kind": null, "parent": parent.map(digest),
            }))
        };
        let ancestor = |(image, parent, gone): &(u8, Option<u8>, bool)| Ancestor {
            parent: parent.map(digest),
            gone: *gone,
            ..Ancestor::unknown(digest(*image))
        };
        ImageList {
            images: images.iter().map(|l| line(l).unwrap()).collect(),
            ancestors: Some(ancestors.iter().map(ancestor).collect()),
        }
    }

    fn shown(list: ImageList) -> Vec<(u8, usize)> {
        in_order(nodes(list)).iter().map(|node| (node.image.0[0], node.depth)).collect()
    }

    #[test]
    fn children_stand_below_their_parents_named_or_not() {
        let images =
            [("a:1", 1, None), ("a:2", 2, Some(1)), ("b:1", 4, Some(3)), ("a:x", 2, Some(1))];
        let all = || list(&images, &[(3, Some(1), false), (9, None, true)]);
        assert_eq!(shown(all()), [(9, 0), (1, 0), (2, 1), (3, 1), (4, 2)]);
        let text = human(&Lineage { images: in_order(nodes(all())) });
        let line = |of: u8| {
            let short = digest(of).to_string();
            text.lines().find(|line| line.contains(&short)).unwrap().to_owned()
        };
        assert!(
            line(9).contains("(gone)")
                && line(3).starts_with("└─ ")
                && line(3).contains("(no name)")
        );
        assert!(line(2).starts_with("├─ ") && line(2).contains("a:2, a:x"), "{text}");
        assert!(line(4).starts_with("   └─ "), "{text}");
        let mut some = nodes(all());
        keep_related(&mut some, "b");
        assert_eq!(some.keys().map(|d| d.0[0]).collect::<Vec<_>>(), [1, 3, 4]);
    }

    #[test]
    fn a_circle_of_records_ends_and_nobody_is_left_out() {
        let images =
            [("a:1", 1, Some(2)), ("a:2", 2, Some(1)), ("a:3", 3, Some(2)), ("a:4", 4, Some(4))];
        assert_eq!(shown(list(&images, &[])), [(1, 0), (2, 1), (3, 2), (4, 0)]);
        let mut some = nodes(list(&images, &[]));
        keep_related(&mut some, "a:1");
        assert_eq!(some.len(), 3);
    }

    #[test]
    fn a_parent_that_nobody_describes_is_there_and_a_long_line_stays_short() {
        assert_eq!(shown(list(&[("a:1", 1, Some(7))], &[])), [(7, 0), (1, 1)]);
        let depths =
            (0..200).map(|depth| LineageLine { depth, ..unnamed(Ancestor::unknown(digest(1))) });
        let widest = drawn(&depths.collect::<Vec<_>>()).iter().map(|d| d.chars().count()).max();
        assert!(widest <= Some(3 * DRAWN));
    }
}
