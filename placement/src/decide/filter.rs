//! Which nodes can be chosen: the rules, each for one node and one request.

use api::fleet::NodeFacts;
use api::place::{Among, Of, PlaceRequest, Reason, Rule};

use super::asked::{Asked, Left};
use super::index::At;
use super::view::Slot;
use super::words;

/// Why a node cannot be chosen, without a word yet: most are forgotten at once.
#[derive(Clone, Copy, Debug)]
pub(super) enum Lack<'a> {
    /// Of a resource there is less left than is needed. `most` is what it has without the head-room.
    Amount { rule: Rule, needs: u64, has: u64, most: u64 },
    /// It is as busy as this, or more.
    Load { load: f64, most: f64 },
    /// It has none of these licences, or they are all taken.
    Licence { name: &'a str, taken: bool },
    /// The risk class is above the highest that it takes.
    Risk { risk: u8, most: u8 },
    /// A risk class is above the highest that another bears beside it.
    BesideRisk { risk: u8, most: u8 },
    /// It lacks this label.
    Label { key: &'a str, value: &'a str },
    /// There are none of them.
    Together(&'a Among),
    /// There are so many of them.
    Apart(&'a Among, u64),
    /// All that needs no more words.
    Plain(Rule),
}

/// What a rule says of a node.
type Verdict<'a> = Result<(), Lack<'a>>;

/// All rules, those first that rule out most for least.
const RULES: [for<'a> fn(&Asked<'a>, At, &Slot) -> Verdict<'a>; 19] = [
    cordoned,
    draining,
    amount::<0>,
    amount::<1>,
    amount::<2>,
    amount::<3>,
    load,
    not_on,
    architecture,
    function,
    labels,
    hypervisor,
    licences,
    tenant,
    alone,
    risk,
    beside_risk,
    together,
    apart,
];
const AMOUNTS: [Rule; 4] = [Rule::Cpu, Rule::Memory, Rule::Disk, Rule::Network];

/// Why the node cannot be chosen: rule by rule as far as it is asked for, and nothing if it can.
pub(super) fn lacks<'a, 's>(
    asked: &'s Asked<'a>,
    at: At,
    slot: &'s Slot,
) -> impl Iterator<Item = Lack<'a>> + use<'a, 's> {
    RULES.iter().filter_map(move |rule| rule(asked, at, slot).err())
}

fn must<'a>(holds: bool, lack: impl FnOnce() -> Lack<'a>) -> Verdict<'a> {
    if holds { Ok(()) } else { Err(lack()) }
}

fn cordoned<'a>(_: &Asked<'a>, _: At, slot: &Slot) -> Verdict<'a> {
    must(!slot.cordoned, || Lack::Plain(Rule::Cordoned))
}

fn draining<'a>(_: &Asked<'a>, _: At, slot: &Slot) -> Verdict<'a> {
    must(!slot.draining, || Lack::Plain(Rule::Draining))
}

fn amount<'a, const N: usize>(asked: &Asked<'a>, _: At, slot: &Slot) -> Verdict<'a> {
    let (needs, capacity) = (asked.needs[N], slot.capacity[N]);
    if needs == 0 {
        return Ok(());
    }
    let room = u128::from(capacity) * u128::from(asked.policy.head_room.all()[N]);
    // Rounded up, so that what is asked to stay free does. It fits: head-room is 1000 thousandths at most.
    let most = capacity - room.div_ceil(1000) as u64;
    let has = most.saturating_sub(slot.taken[N]);
    must(needs <= has, || Lack::Amount { rule: AMOUNTS[N], needs, has, most })
}

fn load<'a>(asked: &Asked<'a>, _: At, slot: &Slot) -> Verdict<'a> {
    let (load, most) = (slot.load, asked.policy.load_most);
    must(load <= most, || Lack::Load { load, most })
}

fn not_on<'a>(asked: &Asked<'a>, at: At, _: &Slot) -> Verdict<'a> {
    must(!asked.not_on.has(at), || Lack::Plain(Rule::NotOn))
}

fn architecture<'a>(asked: &Asked<'a>, at: At, _: &Slot) -> Verdict<'a> {
    let fits = asked.architecture.as_ref().is_none_or(|of| of.has(at));
    must(fits, || Lack::Plain(Rule::Architecture))
}

fn function<'a>(asked: &Asked<'a>, at: At, _: &Slot) -> Verdict<'a> {
    let fits = asked.function.as_ref().is_none_or(|of| of.has(at));
    must(fits, || Lack::Plain(Rule::Function))
}

fn labels<'a>(asked: &Asked<'a>, at: At, _: &Slot) -> Verdict<'a> {
    match asked.labels.iter().find(|(_, _, of)| !of.has(at)) {
        Some((key, value, _)) => Err(Lack::Label { key, value }),
        None => Ok(()),
    }
}

fn hypervisor<'a>(asked: &Asked<'a>, at: At, _: &Slot) -> Verdict<'a> {
    let fits = asked.hypervisor.as_ref().is_none_or(|of| of.has(at));
    must(fits, || Lack::Plain(Rule::Hypervisor))
}

fn licences<'a>(asked: &Asked<'a>, at: At, _: &Slot) -> Verdict<'a> {
    let all = || asked.licences.iter().map(|(name, of)| (*name, of.get(at)));
    // One that it does not hold at all is the worse news.
    if let Some((name, _)) = all().find(|(_, left)| left.is_none()) {
        return Err(Lack::Licence { name, taken: false });
    }
    let taken = |left: Option<Left>| left.is_some_and(|left| !left.free);
    match all().find(|(_, left)| taken(*left)) {
        Some((name, _)) => Err(Lack::Licence { name, taken: true }),
        None => Ok(()),
    }
}

fn tenant<'a>(asked: &Asked<'a>, at: At, slot: &Slot) -> Verdict<'a> {
    must(!slot.dedicated || asked.dedicated.has(at), || Lack::Plain(Rule::Tenant))
}

/// Guests of others there: neither may want to be alone.
fn alone<'a>(asked: &Asked<'a>, at: At, slot: &Slot) -> Verdict<'a> {
    let guest = asked.request.builds.is_none();
    let alone = guest && (asked.request.alone || slot.alone > 0);
    let fellows = || asked.fellows.get(at).unwrap_or(0);
    must(!alone || slot.guests == fellows(), || Lack::Plain(Rule::Alone))
}

fn risk<'a>(asked: &Asked<'a>, _: At, slot: &Slot) -> Verdict<'a> {
    let (risk, most) = (asked.request.risk, slot.risk_most);
    must(risk <= most, || Lack::Risk { risk, most })
}

fn beside_risk<'a>(asked: &Asked<'a>, _: At, slot: &Slot) -> Verdict<'a> {
    if asked.request.builds.is_some() {
        return Ok(());
    }
    let bear = |risk, most| must(risk <= most, || Lack::BesideRisk { risk, most });
    bear(asked.request.risk, slot.beside_risk)?;
    bear(slot.risk, asked.request.beside_risk)
}

fn together<'a>(asked: &Asked<'a>, at: At, _: &Slot) -> Verdict<'a> {
    match asked.together.iter().find(|(_, of)| !of.has(at)) {
        Some((among, _)) => Err(Lack::Together(among)),
        None => Ok(()),
    }
}

fn apart<'a>(asked: &Asked<'a>, at: At, _: &Slot) -> Verdict<'a> {
    let there = asked.apart.iter().find_map(|(among, of)| Some((*among, of.get(at)?)));
    there.map_or(Ok(()), |(among, count)| Err(Lack::Apart(among, count)))
}

impl Lack<'_> {
    fn rule(&self) -> Rule {
        match self {
            Self::Amount { rule, .. } | Self::Plain(rule) => *rule,
            Self::Load { .. } => Rule::Load,
            Self::Licence { .. } => Rule::Licence,
            Self::Risk { .. } => Rule::Risk,
            Self::BesideRisk { .. } => Rule::BesideRisk,
            Self::Label { .. } => Rule::Label,
            Self::Together(_) => Rule::Together,
            Self::Apart(..) => Rule::Apart,
        }
    }

    /// How much is lacking, above 0 and up to 1.
    pub fn much(&self) -> f64 {
        match *self {
            Self::Amount { needs, has, .. } => (needs - has) as f64 / needs as f64,
            Self::Load { load, most } => load - most,
            _ => 1.0,
        }
    }

    /// Whether it would be so even if nothing were placed.
    pub fn lasts(&self) -> bool {
        match self {
            Self::Amount { needs, most, .. } => needs > most,
            Self::Licence { taken, .. } => !taken,
            Self::Risk { .. } | Self::Label { .. } => true,
            Self::Load { .. } | Self::BesideRisk { .. } | Self::Together(_) | Self::Apart(..) => {
                false
            }
            Self::Plain(rule) => !matches!(rule, Rule::Cordoned | Rule::Draining | Rule::Alone),
        }
    }

    /// The same in words, for a request and a node.
    pub fn reason(&self, request: &PlaceRequest, node: &NodeFacts) -> Reason {
        let (needs, has) = match *self {
            Self::Amount { needs, has, .. } => (Some(needs), Some(has)),
            _ => (None, None),
        };
        let (lack, lasting) = (self.much(), self.lasts());
        Reason { rule: self.rule(), why: self.why(request, node), needs, has, lack, lasting }
    }

    fn why(&self, request: &PlaceRequest, node: &NodeFacts) -> String {
        match *self {
            Self::Amount { rule, needs, has, most } => words::amount(rule, needs, has, most),
            Self::Load { load, most } => format!("load {load:.2}: nothing new above {most:.2}"),
            Self::Licence { name, taken: true } => format!("all its licences {name} are taken"),
            Self::Licence { name, taken: false } => format!("it has no licence {name}"),
            Self::Risk { risk, most } => format!("risk class {risk}: it takes up to {most}"),
            Self::BesideRisk { risk, most } => {
                format!("risk class {risk} beside a guest that bears up to {most}")
            }
            Self::Label { key, value } => match node.labels.get(key) {
                Some(other) => format!("label {key}={other}, not {value}"),
                None => format!("it has no label {key}={value}"),
            },
            Self::Together(among) => {
                format!("nothing of {} in its {}", named(&among.of), among.level)
            }
            Self::Apart(among, n) => format!("{n} of {} in its {}", named(&among.of), among.level),
            Self::Plain(rule) => words::plain(rule, request, node),
        }
    }
}

fn named(of: &Of) -> String {
    match of {
        Of::Group(name) => format!("group {name}"),
        Of::Pool(name) => format!("pool {name}"),
    }
}
