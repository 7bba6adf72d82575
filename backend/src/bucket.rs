//! The closed set of buckets, each one column family.

use std::fmt;

/// A named key space. The set is closed: a bucket is added here or nowhere, so no typing error can create one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Bucket {
    /// Small single records of the layers above: revisions, compaction progress, feature level.
    Meta,
    /// The key-value history: keys ascend for ever, values are large.
    Kv,
    /// Raised alarms.
    Alarm,
    /// Cluster members.
    Member,
    /// Leases that were granted.
    Lease,
}

impl Bucket {
    /// Every bucket, in the order of their declaration.
    pub const ALL: [Bucket; 5] = [Bucket::Meta, Bucket::Kv, Bucket::Alarm, Bucket::Member, Bucket::Lease];

    /// The name of the column family on disk. Never changes once released.
    pub const fn name(self) -> &'static str {
        match self {
            Bucket::Meta => "meta",
            Bucket::Kv => "kv",
            Bucket::Alarm => "alarm",
            Bucket::Member => "member",
            Bucket::Lease => "lease",
        }
    }
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
