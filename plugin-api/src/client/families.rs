//! Kinds of events, and the families that they make: what a subscriber asks for by bits where words would be too many.

use std::ops::BitOr;

/// All kinds, each with its family.
pub const KINDS: [(&str, Families); 25] = [
    ("member-joined", Families::MEMBER),
    ("member-left", Families::MEMBER),
    ("member-failed", Families::MEMBER),
    ("member-changed", Families::MEMBER),
    ("member-suspected", Families::SUSPECTED),
    ("plugin-loaded", Families::PLUGIN),
    ("plugin-unloaded", Families::PLUGIN),
    ("plugin-configured", Families::PLUGIN),
    ("plugin-upgraded", Families::PLUGIN),
    ("plugin-rejected", Families::PLUGIN),
    ("plugin-changed", Families::PLUGIN),
    ("instance-started", Families::INSTANCE),
    ("instance-failed", Families::INSTANCE),
    ("instance-restarted", Families::INSTANCE),
    ("instance-promoted", Families::INSTANCE),
    ("instance-demoted", Families::INSTANCE),
    ("config-changed", Families::CONFIG),
    ("key-changed", Families::KEY),
    ("quorum-lost", Families::LABEL),
    ("quorum-regained", Families::LABEL),
    ("label-changed", Families::LABEL),
    ("partition-lost", Families::STREAM),
    ("halting", Families::STREAM),
    ("overflow", Families::STREAM),
    ("detached", Families::STREAM),
];

/// A set of families. The bits are those of `dvm.h` and stay what they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Families(pub u64);

impl Families {
    /// Members come, go, change their tags.
    pub const MEMBER: Self = Self(1);
    /// Instances of plug-ins start and fail.
    pub const INSTANCE: Self = Self(1 << 1);
    /// Plug-ins are loaded, unloaded, configured, change their state.
    pub const PLUGIN: Self = Self(1 << 2);
    /// Settings change.
    pub const CONFIG: Self = Self(1 << 3);
    /// What the history is worth: labels and quorum.
    pub const LABEL: Self = Self(1 << 4);
    /// Keys change. Not in [`ALL`](Self::ALL).
    pub const KEY: Self = Self(1 << 5);
    /// A member is suspected, which may pass. Not in [`ALL`](Self::ALL).
    pub const SUSPECTED: Self = Self(1 << 6);
    /// About the stream itself, and the end of it: `detached`, `overflow`, `partition-lost`, `halting`.
    pub const STREAM: Self = Self(1 << 7);
    /// What `dvm events` tells.
    pub const ALL: Self = Self(0b1001_1111);

    /// Whether all of `other` is in it.
    #[must_use]
    pub fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Those with a kind that begins so.
    #[must_use]
    pub fn of_prefix(prefix: &str) -> Self {
        let kinds = KINDS.iter().filter(|(kind, _)| kind.starts_with(prefix));
        kinds.fold(Self(0), |all, (_, family)| all | *family)
    }

    /// The family of a kind; none for one that this version does not know.
    #[must_use]
    pub fn of_kind(kind: &str) -> Self {
        KINDS.iter().find(|(known, _)| *known == kind).map_or(Self(0), |(_, family)| *family)
    }

    /// The bits that stand for something.
    #[must_use]
    pub fn known() -> Self {
        Self::of_prefix("")
    }

    /// As a subscription's filter wants them: for [`ALL`](Self::ALL) nothing, which also lets through kinds that a later
    /// kernel tells.
    #[must_use]
    pub fn kinds(self) -> Vec<String> {
        if self == Self::ALL {
            return Vec::new();
        }
        KINDS.iter().filter(|(_, family)| self.has(*family)).map(|(kind, _)| (*kind).to_owned()).collect()
    }
}

impl BitOr for Families {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_and_kinds() {
        assert_eq!(Families::of_prefix("member"), Families::MEMBER | Families::SUSPECTED);
        assert_eq!(Families::of_prefix("instance-failed"), Families::INSTANCE);
        assert_eq!(Families::of_prefix("nonesuch"), Families(0));
        assert_eq!(Families::known(), Families::ALL | Families::KEY | Families::SUSPECTED);
        assert_eq!(Families::CONFIG.kinds(), ["config-changed"]);
        assert_eq!(Families::ALL.kinds(), [""; 0]);
        assert_eq!(Families::known().kinds().len(), KINDS.len());
    }
}
