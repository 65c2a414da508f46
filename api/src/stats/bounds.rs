//! How much a node may say: what it sends is kept, so that all of it is bounded.

use image::{Error, Kind, Result};

use super::{NodeStats, SCHEMA};

/// Longest text, in bytes.
pub const MAX_TEXT: usize = 128;
/// Most events of one sample.
pub const MAX_EVENTS: usize = 64;
/// Most entries of any other list, but for cores.
pub const MAX_LIST: usize = 256;
/// Most cores.
const MAX_CORES: usize = 4096;

impl NodeStats {
    /// Checks that it is of this schema and not too much: at most some 400 KB, of a usual node 4 KB.
    ///
    /// # Errors
    ///
    /// Unsupported: another schema. Invalid: which list, or which text, is too long.
    pub fn check(&self) -> Result<()> {
        if self.schema != SCHEMA {
            let what = format!("statistics of schema {}: this program knows {SCHEMA}", self.schema);
            return Err(Error::new(Kind::Unsupported, what));
        }
        for (what, many, most) in self.counts() {
            if many > most {
                return invalid(format!("statistics: {many} {what}: {most} at most"));
            }
        }
        match self.texts().find(|text| text.len() > MAX_TEXT || text.contains(char::is_control)) {
            None => Ok(()),
            Some(text) => {
                let shown: String = text.chars().take(40).collect();
                let shown = shown.escape_debug();
                invalid(format!(
                    "statistics: `{shown}`: texts have {MAX_TEXT} bytes at most, and no control characters"
                ))
            }
        }
    }

    fn counts(&self) -> [(&'static str, usize, usize); 16] {
        let cores = self.cpu.as_ref().map_or(0, |cpu| cpu.cores_busy_per_mille.len());
        let features = self.hypervisors.iter().map(|of| of.features.len()).max().unwrap_or(0);
        let (has, says) = (&self.holdings, &self.declared);
        [
            ("cores", cores, MAX_CORES),
            ("file systems", self.spaces.len(), 8),
            ("disks", self.disks.len(), MAX_LIST),
            ("arrays", self.raids.len(), MAX_LIST),
            ("interfaces", self.interfaces.len(), MAX_LIST),
            ("hypervisors", self.hypervisors.len(), 16),
            ("features of a hypervisor", features, 16),
            ("guests", self.vms.len(), MAX_LIST),
            ("events", self.events.len(), MAX_EVENTS),
            ("images", has.images.len(), MAX_LIST),
            ("pools", has.pools.len(), MAX_LIST),
            ("labels", says.labels.len(), 64),
            ("functions", says.functions.len(), 64),
            ("tenants", says.tenants.len(), 64),
            ("licences", says.licences.len(), 64),
            ("strengths", says.strengths.len(), 16),
        ]
    }

    fn texts(&self) -> impl Iterator<Item = &String> {
        let says = &self.declared;
        let spaces = self.spaces.iter().map(|of| &of.holds);
        let disks = self.disks.iter().map(|of| &of.name);
        let raids = self.raids.iter().flat_map(|of| [&of.name, &of.level, &of.state]);
        let links = self.interfaces.iter().flat_map(|of| [Some(&of.name), of.parent.as_ref()]);
        let hypervisors = self.hypervisors.iter();
        let hypervisors =
            hypervisors.flat_map(|of| [&of.kind, &of.version].into_iter().chain(&of.features));
        let vms = self.vms.iter().flat_map(|of| [&of.name, &of.hypervisor]);
        let events = self.events.iter().map(|of| &of.name);
        let labels = says.labels.iter().flat_map(|(name, value)| [name, value]);
        let names = says.functions.iter().chain(&says.tenants).chain(says.licences.keys());
        [&says.architecture, &says.domain]
            .into_iter()
            .chain(spaces.chain(disks).chain(raids).chain(links.flatten()).chain(hypervisors))
            .chain(vms.chain(events).chain(self.holdings.pools.keys()))
            .chain(labels.chain(names).chain(says.strengths.keys()))
    }
}

fn invalid(what: String) -> Result<()> {
    Err(Error::new(Kind::Invalid, what))
}

#[cfg(test)]
mod tests {
    use super::super::*;
    use super::*;

    fn stats() -> NodeStats {
        NodeStats { schema: SCHEMA, ..NodeStats::default() }
    }

    #[test]
    fn what_is_too_much_is_refused_by_name() {
        stats().check().unwrap();
        let many = |n: usize| NodeStats { vms: vec![VmStats::default(); n], ..stats() };
        many(MAX_LIST).check().unwrap();
        let refused = many(MAX_LIST + 1).check().unwrap_err();
        assert_eq!(refused.message(), "statistics: 257 guests: 256 at most");
        let named = |name: String| NodeStats {
            vms: vec![VmStats { name, ..VmStats::default() }],
            ..stats()
        };
        named("v".repeat(MAX_TEXT)).check().unwrap();
        for wrong in ["v".repeat(MAX_TEXT + 1), "a\u{1b}[2J".into()] {
            assert_eq!(named(wrong).check().unwrap_err().kind(), Kind::Invalid);
        }
        let cores = CpuStats { cores_busy_per_mille: vec![0; 4097], ..CpuStats::default() };
        assert!(NodeStats { cpu: Some(cores), ..stats() }.check().is_err());
        let later = NodeStats { schema: 2, ..stats() };
        assert_eq!(later.check().unwrap_err().kind(), Kind::Unsupported);
    }

    #[test]
    fn what_a_later_version_adds_does_no_harm_and_what_is_lacking_is_left_out() {
        let text =
            r#"{"schema":1,"number":3,"moon":"full","events":[{"what":"vm-moved","name":"a"}]}"#;
        let read: NodeStats = serde_json::from_str(text).unwrap();
        assert_eq!((read.number, read.events[0].what), (3, What::Unknown));
        assert!(read.cpu.is_none() && read.pressure.load_per_mille().is_none());
        let again = serde_json::to_string(&read).unwrap();
        assert!(!again.contains("busy-per-mille"), "{again}");
        assert_eq!(serde_json::from_str::<NodeStats>(&again).unwrap(), read);
    }

    #[test]
    fn the_essentials_are_those_of_what_matters() {
        let net = |physical, up, bytes| InterfaceStats {
            physical,
            up,
            received_bytes_per_sec: Some(bytes),
            ..InterfaceStats::default()
        };
        let disk = |reads_per_sec, micros| DiskStats {
            work: Some(DiskWork {
                reads_per_sec,
                read_micros: Some(micros),
                ..DiskWork::default()
            }),
            errors: Some(1),
            ..DiskStats::default()
        };
        let space = |holds: &str, free_bytes| SpaceStats {
            holds: holds.into(),
            free_bytes,
            ..SpaceStats::default()
        };
        let point = NodeStats {
            interfaces: vec![net(true, true, 5), net(false, true, 7), net(true, false, 9)],
            disks: vec![disk(30, 100), disk(10, 500)],
            spaces: vec![space("data", 1), space("volumes", 2)],
            ..stats()
        }
        .point();
        assert_eq!((point.received_bytes_per_sec, point.disk_free_bytes), (5, 2));
        assert_eq!((point.io_micros, point.reads_per_sec, point.disk_errors), (Some(200), 40, 2));
    }
}
