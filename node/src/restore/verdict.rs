//! What the end of a tool means.

use super::report::Verdict;
use super::said::Said;

/// Characters of what a tool said that are told.
const TOLD: usize = 600;
/// With this our script ends when it has not come to the tool.
const NOT_BEGUN: i32 = 125;
/// And with this when the kernel did not mount it.
const NOT_MOUNTED: i32 = 124;

/// A tool, and what it is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Task {
    /// `e2fsck -fn`.
    Ext,
    /// `e2fsck -fp`: what a machine does at its start.
    ExtReplay,
    /// `xfs_repair -n`.
    Xfs,
    /// The same, after the log has been replayed by mounting it.
    XfsReplay,
    /// `btrfs check --readonly`.
    Btrfs,
    /// `ntfsresize --info`, which accounts for each cluster; `ntfsfix` looks at less.
    Ntfs,
    /// `fsck.fat -n`.
    Fat,
}

/// XFS: its log has to be replayed, and what else is said may be for want of that.
const LOG_LEFT: &str = "valuable metadata changes in a log";

impl Task {
    /// The program.
    pub(super) fn tool(self) -> &'static str {
        match self {
            Self::Ext | Self::ExtReplay => "e2fsck",
            Self::Xfs | Self::XfsReplay => "xfs_repair",
            Self::Btrfs => "btrfs",
            Self::Ntfs => "ntfsresize",
            Self::Fat => "fsck.fat",
        }
    }

    /// The Debian package that it is in.
    pub(super) fn package(self) -> &'static str {
        match self {
            Self::Ext | Self::ExtReplay => "e2fsprogs",
            Self::Xfs | Self::XfsReplay => "xfsprogs",
            Self::Btrfs => "btrfs-progs",
            Self::Ntfs => "ntfs-3g",
            Self::Fat => "dosfstools",
        }
    }

    /// What our script knows it by.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ext => "ext",
            Self::ExtReplay => "ext-replay",
            Self::Xfs => "xfs",
            Self::XfsReplay => "xfs-replay",
            Self::Btrfs => "btrfs",
            Self::Ntfs => "ntfs",
            Self::Fat => "fat",
        }
    }

    /// Texts by which its ends are told apart: of something that the tool does not know first.
    pub(super) fn wanted(self) -> &'static [&'static str] {
        match self {
            Self::Ext | Self::ExtReplay => &["unsupported feature"],
            Self::Xfs => &["unsupported feature", LOG_LEFT],
            Self::XfsReplay => &["unsupported feature", LOG_LEFT, "needs cleaning"],
            Self::Btrfs => &["unsupported option features"],
            Self::Ntfs => &["not supported", "scheduled for a check", "unclean file system"],
            Self::Fat => &["not supported"],
        }
    }
}

/// How a tool ended.
#[derive(Debug)]
pub(super) struct Ended {
    /// With which code; none if a signal ended it.
    pub(super) code: Option<i32>,
    pub(super) said: Said,
}

/// What the end of a check means.
pub(super) fn judge(task: Task, ended: &Ended) -> Verdict {
    let Ended { code, said } = ended;
    let tool = task.tool();
    let told = || said.text(TOLD);
    match (task, code) {
        (_, Some(NOT_BEGUN)) => Verdict::not_checked(told()),
        (Task::Xfs | Task::XfsReplay, _) if said.has(1) => {
            let why = "its log has to be replayed, which only mounting does: with --mount this machine's kernel does it \
                       on the scratch copy, which is for images that you trust";
            Verdict::not_checked(why)
        }
        (Task::XfsReplay, Some(NOT_MOUNTED)) if said.has(2) => Verdict::damaged(told()),
        (_, Some(NOT_MOUNTED)) => Verdict::not_checked(told()),
        (_, Some(0)) => Verdict::Clean,
        (_, Some(126 | 127)) => {
            Verdict::not_checked(format!("{tool} cannot be started: {}", told()))
        }
        _ if said.has(0) => {
            Verdict::not_checked(format!("{tool} does not know all of it: {}", told()))
        }
        (Task::Ntfs, _) if said.has(1) || said.has(2) => {
            Verdict::not_checked(format!("Windows has not put it in order: {}", told()))
        }
        (_, Some(code)) => Verdict::damaged(format!("{tool} ended with {code}: {}", told())),
        (_, None) => Verdict::damaged(format!("{tool} was ended by a signal: {}", told())),
    }
}

/// What the three looks at an ext mean whose journal had to be replayed: before, the replaying, and after.
pub(super) fn judge_replayed(before: &Ended, replay: &Ended, after: &Ended) -> Verdict {
    // 1: it has mended something, 2: and wants a new start.
    if !matches!(replay.code, Some(0..=3)) {
        return match judge(Task::ExtReplay, replay) {
            Verdict::Damaged { said } => {
                Verdict::damaged(format!("when its journal was replayed: {said}"))
            }
            other => other,
        };
    }
    match judge(Task::Ext, after) {
        Verdict::Clean => Verdict::Recovered {
            done: "its journal was replayed".to_owned(),
            clean_before: judge(Task::Ext, before) == Verdict::Clean,
        },
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(task: Task, code: Option<i32>, text: &str) -> Ended {
        let mut said = Said::wanting(task.wanted());
        said.push(text.as_bytes());
        Ended { code, said }
    }

    fn name(verdict: &Verdict) -> String {
        serde_json::to_value(verdict).unwrap()["verdict"].as_str().unwrap().to_owned()
    }

    /// As e2fsprogs 1.47.0, xfsprogs 6.1.0, btrfs-progs 6.2, ntfs-3g 2022.10.3 and dosfstools 4.2 say it.
    #[test]
    fn the_ends_of_tools_are_told_apart() {
        let log =
            "ALERT: The filesystem has valuable metadata changes in a log which is being\nignored";
        let feature = "./disk?offset=0 has unsupported feature(s): FEATURE_C12";
        for (task, code, said, verdict) in [
            (Task::Ext, Some(0), "Pass 5: Checking group summary information", "clean"),
            (Task::Ext, Some(4), "WARNING: Filesystem still has errors", "damaged"),
            (Task::Ext, Some(8), "The ext2 superblock is corrupt", "damaged"),
            (Task::Ext, Some(8), feature, "not-checked"),
            (Task::Ext, None, "", "damaged"),
            (Task::Ext, Some(127), "sh: 1: e2fsck: not found", "not-checked"),
            (Task::Xfs, Some(0), "Phase 7 - verify link counts...", "clean"),
            (Task::Xfs, Some(1), "would reset nlink", "damaged"),
            (Task::Xfs, Some(1), log, "not-checked"),
            (Task::Xfs, Some(0), log, "not-checked"),
            (Task::XfsReplay, Some(0), "", "clean"),
            (Task::XfsReplay, Some(124), "mount: unknown filesystem type 'xfs'", "not-checked"),
            (Task::XfsReplay, Some(124), "mount: Structure needs cleaning.", "damaged"),
            (Task::Btrfs, Some(0), "no error found", "clean"),
            (Task::Btrfs, Some(1), "checksum verify failed", "damaged"),
            (Task::Ntfs, Some(0), "", "clean"),
            (Task::Ntfs, Some(1), "ERROR: Cluster accounting failed at 5", "damaged"),
            (Task::Ntfs, Some(1), "ERROR: Volume is scheduled for a check.", "not-checked"),
            (Task::Fat, Some(1), "FATs differ", "damaged"),
            (Task::Btrfs, Some(125), "losetup: cannot find an unused loop device", "not-checked"),
        ] {
            let verdict_is = name(&judge(task, &ended(task, code, said)));
            assert_eq!(verdict_is, verdict, "{task:?} {code:?} {said}");
        }
    }

    #[test]
    fn a_journal_is_no_damage_but_hides_none() {
        let ext = |code| ended(Task::Ext, Some(code), "");
        let replay = |code| ended(Task::ExtReplay, Some(code), "UNEXPECTED INCONSISTENCY");
        let verdict = judge_replayed(&ext(4), &replay(1), &ext(0));
        assert!(matches!(verdict, Verdict::Recovered { clean_before: false, .. }), "{verdict}");
        let verdict = judge_replayed(&ext(0), &replay(0), &ext(0));
        assert!(matches!(verdict, Verdict::Recovered { clean_before: true, .. }), "{verdict}");
        let verdict = judge_replayed(&ext(4), &replay(1), &ext(4));
        assert!(matches!(verdict, Verdict::Damaged { .. }), "{verdict}");
        let verdict = judge_replayed(&ext(4), &replay(4), &ext(4));
        assert!(verdict.to_string().contains("UNEXPECTED"), "{verdict}");
    }
}
