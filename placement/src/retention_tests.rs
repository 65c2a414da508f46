//! Hand-made calendars, and any set of images against a simpler model.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

fn candidate(name: &str, image: u8, created: Option<u64>) -> Candidate {
    let name = name.parse().unwrap();
    Candidate { name, image: Digest([image; 32]), created, labels: BTreeMap::new() }
}

/// Seconds since 1970 of a day, by counting days.
fn day(year: u64, month: u64, day: u64) -> u64 {
    let leap = |y: u64| (y.is_multiple_of(4) && !y.is_multiple_of(100)) || y.is_multiple_of(400);
    let years: u64 = (1970..year).map(|y| 365 + u64::from(leap(y))).sum();
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let months: u64 = lengths[..month as usize - 1].iter().sum();
    (years + months + day - 1) * 86_400
}

/// What is said of each image, the newest first.
fn said(at: &[u64], policy: &Policy, now: u64) -> Vec<String> {
    let name = |i: usize| format!("vm:{i:04}");
    let all = at.iter().enumerate().map(|(i, at)| candidate(&name(i), i as u8, Some(*at)));
    let decisions = decide(all.collect(), policy, now);
    decisions.into_iter().map(|d| text(&d.verdict)).collect()
}

fn text(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Kept(reasons) => {
            reasons.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
        }
        Verdict::Undated => "undated".into(),
        Verdict::Removed => "-".into(),
    }
}

#[test]
fn each_rule_counts_for_itself() {
    let d = day(2026, 11, 21);
    let at = [d, d + 3600, d + 3700, d + 86_400, d - 86_400];
    let policy = Policy { last: 2, hourly: 3, daily: 2, ..Policy::default() };
    let kept = [
        "last, hourly 2026-11-22T00, daily 2026-11-22",
        "last, hourly 2026-11-21T01, daily 2026-11-21",
        "-",
        "hourly 2026-11-21T00",
        "-",
    ];
    assert_eq!(said(&at, &policy, d), kept);
}

#[test]
fn years_end_where_they_end_and_weeks_where_they_do() {
    // 2020-12-31 was a Thursday: the week went on to January 3. 2024-12-30 began the first week of 2025.
    let at = [day(2020, 12, 31), day(2021, 1, 1), day(2021, 1, 3), day(2021, 1, 4)];
    let policy = Policy { weekly: 2, yearly: 2, ..Policy::default() };
    let kept = ["weekly 2021-W01, yearly 2021", "weekly 2020-W53", "-", "yearly 2020"];
    assert_eq!(said(&at, &policy, 0), kept);

    let at = [day(2024, 12, 29), day(2024, 12, 30), day(2025, 1, 5)];
    let policy = Policy { weekly: 9, monthly: 9, ..Policy::default() };
    let kept = ["weekly 2025-W01, monthly 2025-01", "monthly 2024-12", "weekly 2024-W52"];
    assert_eq!(said(&at, &policy, 0), kept);

    // The last second of a year, and the first.
    let new = day(2027, 1, 1);
    let policy = Policy { hourly: 9, yearly: 9, ..Policy::default() };
    let kept = ["hourly 2027-01-01T00, yearly 2027", "hourly 2026-12-31T23, yearly 2026"];
    assert_eq!(said(&[new - 1, new], &policy, 0), kept);
}

#[test]
fn leap_days_are_days() {
    let policy = Policy { daily: 2, monthly: 1, ..Policy::default() };
    let at = [day(2024, 2, 28), day(2024, 2, 29), day(2024, 3, 1)];
    let kept = ["daily 2024-03-01, monthly 2024-03", "daily 2024-02-29", "-"];
    assert_eq!(said(&at, &policy, 0), kept);
    // 2100 has none.
    let at = [day(2100, 3, 1) - 86_400, day(2100, 3, 1)];
    let kept = ["daily 2100-03-01, monthly 2100-03", "daily 2100-02-28"];
    assert_eq!(said(&at, &policy, 0), kept);
}

#[test]
fn what_is_young_or_labelled_is_kept_and_so_is_what_lies_ahead() {
    let policy = Policy { within: Some(100), ..Policy::default() };
    assert_eq!(said(&[899, 900, 901, 5000], &policy, 1000), ["within", "within", "within", "-"]);
    let mut labelled = candidate("vm:1", 1, Some(5));
    labelled.labels.insert("keep".into(), "yes".into());
    let other = candidate("vm:2", 2, Some(9));
    let policy = Policy { labels: vec![("keep".into(), "yes".into())], ..Policy::default() };
    let decisions = decide(vec![labelled, other], &policy, 0);
    let texts: Vec<_> = decisions.iter().map(|d| text(&d.verdict)).collect();
    assert_eq!(texts, ["-", "label keep=yes"]);
}

#[test]
fn groups_are_apart_names_of_an_image_together_and_no_date_is_no_reason_to_go() {
    let all = vec![
        candidate("a/vm:1", 1, Some(10)),
        candidate("vm:1", 1, Some(10)),
        candidate("vm:2", 2, Some(20)),
        candidate("vm:latest", 2, Some(20)),
        candidate("vm:3", 3, None),
        candidate("vm:4", 4, Some(u64::MAX)),
        candidate("vm2:1", 1, Some(10)),
    ];
    let policy = Policy { last: 1, ..Policy::default() };
    let decisions = decide(all, &policy, 30);
    let found: Vec<_> =
        decisions.iter().map(|d| (d.candidate.name.to_string(), text(&d.verdict))).collect();
    let expected = [
        ("vm:latest", "last"),
        ("vm:2", "last"),
        ("vm:1", "-"),
        ("vm:4", "undated"),
        ("vm:3", "undated"),
        ("vm2:1", "last"),
        ("a/vm:1", "last"),
    ];
    let expected: Vec<_> =
        expected.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
    assert_eq!(found, expected);
}

#[test]
fn a_policy_of_zeros_keeps_nothing() {
    assert!(Policy::default().is_empty());
    assert!(!Policy { yearly: 1, ..Policy::default() }.is_empty());
    assert!(!Policy { within: Some(0), ..Policy::default() }.is_empty());
}

/// Year, month and day by counting; the ISO week by its Thursday.
fn calendar(at: u64) -> [(u64, u64); 5] {
    let days = at / 86_400;
    let date = |days: u64| {
        let mut year = 1970;
        while day(year + 1, 1, 1) / 86_400 <= days {
            year += 1;
        }
        let mut month = 1;
        while month < 12 && day(year, month + 1, 1) / 86_400 <= days {
            month += 1;
        }
        (year, month)
    };
    let (year, month) = date(days);
    // 1970-01-01 was a Thursday.
    let thursday = days + 3 - (days + 3) % 7;
    let of = date(thursday).0;
    let week = (thursday - day(of, 1, 1) / 86_400) / 7 + 1;
    [(at / 3600, 0), (days, 0), (of, week), (year, month), (year, 0)]
}

proptest! {
    #[test]
    fn any_images_are_kept_as_a_simple_model_keeps_them(
        times in proptest::collection::btree_set(0u64..4_200_000_000, 1..60),
        near in proptest::collection::btree_set(1_700_000_000u64..1_700_900_000, 1..60),
        counts in proptest::array::uniform6(0u32..8),
        within in proptest::option::of(0u64..1_000_000),
    ) {
        let now = 1_700_900_000;
        let all: BTreeSet<u64> = times.union(&near).copied().collect();
        let [last, hourly, daily, weekly, monthly, yearly] = counts;
        let policy =
            Policy { last, hourly, daily, weekly, monthly, yearly, within, labels: Vec::new() };
        let mut kept: BTreeSet<u64> = all.iter().rev().take(last as usize).copied().collect();
        kept.extend(all.iter().filter(|at| within.is_some_and(|w| **at + w >= now)));
        for (i, count) in counts[1..].iter().enumerate() {
            let mut newest = BTreeMap::new();
            all.iter().for_each(|at| { newest.insert(calendar(*at)[i], *at); });
            kept.extend(newest.values().rev().take(*count as usize));
        }
        let candidates = all.iter().enumerate().map(|(i, at)| candidate(&format!("vm:{i}"), i as u8, Some(*at)));
        let decisions = decide(candidates.collect(), &policy, now);
        prop_assert_eq!(decisions.len(), all.len());
        let found = decisions.iter().filter(|d| d.verdict != Verdict::Removed);
        let found: BTreeSet<u64> = found.filter_map(|d| d.candidate.created).collect();
        prop_assert_eq!(found, kept);
    }
}
