//! Which names of images are kept, and which may go: a pure decision over what is known of them.
//!
//! Names are grouped by all that stands before the tag, `[tenant/]name`. In a group images count, not names: names of
//! one image are kept, or go, together. Images are looked at from the newest to the oldest, by when they were
//! made; of the same second the one whose name sorts last is the newer.
//!
//! - `last` keeps that many images.
//! - `hourly`, `daily`, `weekly`, `monthly` and `yearly` keep the newest image of each hour, day, week (ISO 8601), month
//!   and year in UTC, of the newest that many hours, days and so on in which there are images.
//! - `within` keeps what was made within that time before now, or after it.
//! - `labels` keeps what has one of these labels.
//!
//! Rules do not know of each other: an image that several keep counts for each of them (as in restic; in borg it
//! counts for the finest only). An image of which nobody knows when it was made is kept, and counts for none.

use std::collections::BTreeMap;
use std::fmt;

use image::{Digest, Ref};
use time::{OffsetDateTime, Weekday};

/// What is kept. Numbers are of images, or of hours, days and so on; 0 keeps none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// The newest images.
    pub last: u32,
    /// The newest of each hour.
    pub hourly: u32,
    /// The newest of each day.
    pub daily: u32,
    /// The newest of each week.
    pub weekly: u32,
    /// The newest of each month.
    pub monthly: u32,
    /// The newest of each year.
    pub yearly: u32,
    /// What is not older than so many seconds.
    pub within: Option<u64>,
    /// What has one of these labels.
    pub labels: Vec<(String, String)>,
}

impl Policy {
    /// Whether it keeps nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A name, and what is known of its image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The name.
    pub name: Ref,
    /// The image that it points at.
    pub image: Digest,
    /// When the image was made, in seconds since 1970.
    pub created: Option<u64>,
    /// The image's labels.
    pub labels: BTreeMap<String, String>,
}

/// Why an image is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It is among the newest.
    Last,
    /// It is the newest of this hour, `2026-11-21T17`.
    Hourly(String),
    /// It is the newest of this day, `2026-11-21`.
    Daily(String),
    /// It is the newest of this week, `2026-W47`.
    Weekly(String),
    /// It is the newest of this month, `2026-11`.
    Monthly(String),
    /// It is the newest of this year, `2026`.
    Yearly(String),
    /// It is young enough.
    Within,
    /// It has this label.
    Label(String, String),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Last => f.write_str("last"),
            Self::Hourly(of) => write!(f, "hourly {of}"),
            Self::Daily(of) => write!(f, "daily {of}"),
            Self::Weekly(of) => write!(f, "weekly {of}"),
            Self::Monthly(of) => write!(f, "monthly {of}"),
            Self::Yearly(of) => write!(f, "yearly {of}"),
            Self::Within => f.write_str("within"),
            Self::Label(key, value) => write!(f, "label {key}={value}"),
        }
    }
}

/// What becomes of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It stays, for these reasons: one at least.
    Kept(Vec<Reason>),
    /// It stays, for nobody knows when its image was made.
    Undated,
    /// It may go.
    Removed,
}

/// A name, and what becomes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The name, and what is known of its image.
    pub candidate: Candidate,
    /// What becomes of it.
    pub verdict: Verdict,
}

/// Decides for all names, at `now` (seconds since 1970). The answer is in the order of the groups; in each from the
/// newest image to the oldest, and then what has no date.
pub fn decide(candidates: Vec<Candidate>, policy: &Policy, now: u64) -> Vec<Decision> {
    let mut groups: BTreeMap<(Option<String>, String), Vec<Candidate>> = BTreeMap::new();
    for candidate in candidates {
        let name = &candidate.name;
        let group = (name.tenant().map(str::to_owned), name.name().to_owned());
        groups.entry(group).or_default().push(candidate);
    }
    groups.into_values().flat_map(|group| decide_group(group, policy, now)).collect()
}

fn decide_group(group: Vec<Candidate>, policy: &Policy, now: u64) -> Vec<Decision> {
    let (mut images, undated) = by_image(group);
    images.sort_by(|(a, x), (b, y)| (b, &y[0].name).cmp(&(a, &x[0].name)));
    let mut buckets = Buckets::of(policy);
    let mut decisions = Vec::new();
    for (moment, names) in images {
        let reasons = buckets.keep(moment, policy, &names[0], now);
        decisions.extend(names.into_iter().map(|candidate| {
            let verdict = match reasons.is_empty() {
                true => Verdict::Removed,
                false => Verdict::Kept(reasons.clone()),
            };
            Decision { candidate, verdict }
        }));
    }
    let kept = |candidate| Decision { candidate, verdict: Verdict::Undated };
    decisions.extend(undated.into_iter().map(kept));
    decisions
}

/// The images of a group, each with its names, the last one first; and the names of those without a date.
fn by_image(group: Vec<Candidate>) -> (Vec<(Moment, Vec<Candidate>)>, Vec<Candidate>) {
    let mut images: BTreeMap<Digest, (Moment, Vec<Candidate>)> = BTreeMap::new();
    let mut undated = Vec::new();
    for candidate in group {
        match candidate.created.and_then(Moment::of) {
            Some(moment) => {
                let of = || (moment, Vec::new());
                images.entry(candidate.image).or_insert_with(of).1.push(candidate);
            }
            None => undated.push(candidate),
        }
    }
    let mut images: Vec<_> = images.into_values().collect();
    images.iter_mut().for_each(|(_, names)| names.sort_by(|a, b| b.name.cmp(&a.name)));
    undated.sort_by(|a, b| b.name.cmp(&a.name));
    (images, undated)
}

/// A point in time, as the calendar has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Moment {
    at: u64,
    year: i32,
    month: u8,
    day: u8,
    hour: u8,
    /// Year and number of the week; the year is not always that of the day.
    week: (i32, u8),
}

impl Moment {
    /// `None` for what the calendar does not reach, after the year 9999.
    fn of(at: u64) -> Option<Self> {
        let time = OffsetDateTime::from_unix_timestamp(i64::try_from(at).ok()?).ok()?;
        let (year, week, _): (i32, u8, Weekday) = time.to_iso_week_date();
        Some(Self {
            at,
            year: time.year(),
            month: time.month().into(),
            day: time.day(),
            hour: time.hour(),
            week: (year, week),
        })
    }

    fn hour(&self) -> String {
        format!("{}T{:02}", self.day(), self.hour)
    }

    fn day(&self) -> String {
        format!("{}-{:02}", self.month(), self.day)
    }

    fn week(&self) -> String {
        format!("{:04}-W{:02}", self.week.0, self.week.1)
    }

    fn month(&self) -> String {
        format!("{:04}-{:02}", self.year, self.month)
    }

    fn year(&self) -> String {
        format!("{:04}", self.year)
    }
}

/// A rule of so many hours, days and so on.
struct Bucket {
    left: u32,
    /// The one of which the newest image was met last.
    last: Option<String>,
    name: fn(&Moment) -> String,
    reason: fn(String) -> Reason,
}

/// The rules of a group that count.
struct Buckets {
    last: u32,
    of: [Bucket; 5],
}

impl Buckets {
    fn of(policy: &Policy) -> Self {
        let bucket = |left, name, reason| Bucket { left, last: None, name, reason };
        Self {
            last: policy.last,
            of: [
                bucket(policy.hourly, Moment::hour, Reason::Hourly),
                bucket(policy.daily, Moment::day, Reason::Daily),
                bucket(policy.weekly, Moment::week, Reason::Weekly),
                bucket(policy.monthly, Moment::month, Reason::Monthly),
                bucket(policy.yearly, Moment::year, Reason::Yearly),
            ],
        }
    }

    /// Why the next image, which is older than all before it, is kept.
    fn keep(&mut self, at: Moment, policy: &Policy, of: &Candidate, now: u64) -> Vec<Reason> {
        let mut reasons = Vec::new();
        if self.last > 0 {
            self.last -= 1;
            reasons.push(Reason::Last);
        }
        for bucket in self.of.iter_mut().filter(|bucket| bucket.left > 0) {
            let name = (bucket.name)(&at);
            // Times only fall: one that was left does not come back.
            if bucket.last.as_ref() != Some(&name) {
                bucket.left -= 1;
                bucket.last = Some(name.clone());
                reasons.push((bucket.reason)(name));
            }
        }
        if policy.within.is_some_and(|within| at.at >= now.saturating_sub(within)) {
            reasons.push(Reason::Within);
        }
        let has = |(key, value): &&(String, String)| of.labels.get(key) == Some(value);
        let labels = policy.labels.iter().filter(has);
        reasons.extend(labels.map(|(key, value)| Reason::Label(key.clone(), value.clone())));
        reasons
    }
}

#[cfg(test)]
#[path = "retention_tests.rs"]
mod tests;
