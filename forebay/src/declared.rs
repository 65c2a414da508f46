//! What the configuration says of this node, for choosing it: `node.labels`, `node.licences` and so on.

use std::collections::{BTreeMap, BTreeSet};

use api::fleet::check_levels;
use api::stats::{Declared, DeclaredLicence, DeclaredStrengths, NodeStats, SCHEMA};
use image::error::At;
use image::{Error, Kind, Result};

use crate::config::Config;

/// What is configured.
///
/// # Errors
///
/// Invalid: which key, and what it must be like.
pub fn declared(config: &Config) -> Result<Declared> {
    let architecture = match config.text("node.architecture") {
        "" => std::env::consts::ARCH.to_owned(),
        text => text.to_owned(),
    };
    let declared = Declared {
        architecture,
        domain: config.text("node.domain").to_owned(),
        labels: pairs(config, "node.labels", |value| Some(value.to_owned()))?,
        functions: names(config, "node.functions"),
        tenants: names(config, "node.tenants"),
        risk_most: risk(config)?,
        licences: pairs(config, "node.licences", licence)?,
        strengths: pairs(config, "node.strengths", strengths)?,
        network_bits_per_sec: Some(config.size("node.network")).filter(|bits| *bits > 0),
    };
    // What placement would refuse is better found here.
    let said = NodeStats { schema: SCHEMA, declared: declared.clone(), ..NodeStats::default() };
    said.check().at(|| "configuration: node")?;
    Ok(declared)
}

/// Levels of failure domains, as placement has them.
///
/// # Errors
///
/// Invalid: one is no name, or is there twice.
pub fn levels(config: &Config) -> Result<Vec<String>> {
    let text = config.text("place.levels");
    let levels: Vec<String> = match text {
        "" => Vec::new(),
        text => text.split('/').map(|level| level.trim().to_owned()).collect(),
    };
    check_levels(&levels).at(|| format!("configuration: place.levels = `{text}`"))?;
    Ok(levels)
}

fn parts<'a>(config: &'a Config, key: &'static str) -> impl Iterator<Item = &'a str> {
    config.text(key).split(',').map(str::trim).filter(|part| !part.is_empty())
}

fn names(config: &Config, key: &'static str) -> BTreeSet<String> {
    parts(config, key).map(str::to_owned).collect()
}

/// `a=1, b=2`
fn pairs<T>(
    config: &Config,
    key: &'static str,
    read: impl Fn(&str) -> Option<T>,
) -> Result<BTreeMap<String, T>> {
    let mut found = BTreeMap::new();
    for part in parts(config, key) {
        let pair = part.split_once('=').filter(|(name, _)| !name.trim().is_empty());
        let pair =
            pair.and_then(|(name, value)| Some((name.trim().to_owned(), read(value.trim())?)));
        let Some((name, value)) = pair else {
            return Err(wrong(key, part));
        };
        if found.insert(name.clone(), value).is_some() {
            let what = format!("configuration: {key}: `{name}` is there twice");
            return Err(Error::new(Kind::Invalid, what));
        }
    }
    Ok(found)
}

fn wrong(key: &str, part: &str) -> Error {
    let what = format!("configuration: {key}: `{part}`: `forebay config` shows how it is written");
    Error::new(Kind::Invalid, what)
}

fn risk(config: &Config) -> Result<Option<u8>> {
    let text = config.text("node.risk_most");
    match text {
        "" => Ok(None),
        text => text.parse().map(Some).map_err(|_| wrong("node.risk_most", text)),
    }
}

/// `4@0.5`, `*@2`, `4`
fn licence(text: &str) -> Option<DeclaredLicence> {
    let (held, cost) = text.split_once('@').unwrap_or((text, "0"));
    let held = match held.trim() {
        "*" => None,
        many => Some(many.parse().ok()?),
    };
    let cost: f64 = cost.trim().parse().ok()?;
    let cost_per_mille = cost * 1000.0;
    (0.0..=f64::from(u32::MAX))
        .contains(&cost_per_mille)
        .then_some(DeclaredLicence { held, cost_per_mille: cost_per_mille.round() as u32 })
}

/// `0.97/0.8/0.9`
fn strengths(text: &str) -> Option<DeclaredStrengths> {
    let share = |text: &str| {
        let share: f64 = text.trim().parse().ok()?;
        (0.0..=1.0).contains(&share).then(|| (share * 1000.0).round() as u32)
    };
    let shares: Vec<u32> = text.split('/').map(share).collect::<Option<_>>()?;
    let &[cpu_per_mille, disk_per_mille, network_per_mille] = shares.as_slice() else {
        return None;
    };
    Some(DeclaredStrengths { cpu_per_mille, disk_per_mille, network_per_mille })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(key: &str, text: &str) -> Config {
        let dir = tempfile::tempdir().unwrap();
        let flags = [(key.to_owned(), text.to_owned())];
        Config::load(dir.path().to_owned(), None, |_| None, &flags).unwrap()
    }

    #[test]
    fn what_is_configured_is_declared() {
        let plain = declared(&config("node.labels", "")).unwrap();
        let architecture = std::env::consts::ARCH.to_owned();
        assert_eq!(plain, Declared { architecture, ..Declared::default() });
        let labels = declared(&config("node.labels", "disk=nvme, tier = gold,")).unwrap().labels;
        let pairs: Vec<_> = labels.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(pairs, [("disk", "nvme"), ("tier", "gold")]);
        let licences = declared(&config("node.licences", "w=4@0.5, s=*@2, t=1")).unwrap().licences;
        let told = |name: &str| (licences[name].held, licences[name].cost_per_mille);
        assert_eq!([told("w"), told("s"), told("t")], [(Some(4), 500), (None, 2000), (Some(1), 0)]);
        let strong = declared(&config("node.strengths", "qemu=0.97/0.8/1")).unwrap().strengths;
        assert_eq!(strong["qemu"].cpu_per_mille, 970);
        assert_eq!(levels(&config("place.levels", "site/rack")).unwrap(), ["site", "rack"]);
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_its_key() {
        for (key, text) in [
            ("node.labels", "disk"),
            ("node.labels", "a=1, a=2"),
            ("node.licences", "w=many"),
            ("node.licences", "w=1@-1"),
            ("node.strengths", "qemu=0.97"),
            ("node.strengths", "qemu=1/1/1.5"),
            ("node.risk_most", "256"),
            ("node.domain", "a\u{7}b"),
        ] {
            let error = declared(&config(key, text)).unwrap_err();
            assert!(error.message().starts_with("configuration: node"), "{key} {text}: {error}");
        }
        assert!(levels(&config("place.levels", "rack/rack")).is_err());
    }
}
