//! Names and counters of the hub, each a type of its own.
//!
//! Everything that crosses a layer is one of these, so that an offset is never taken for a version or a node for a
//! shard. Fields are private; a value exists only if it is valid.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::sync::Arc;

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidId {
    #[error("the id is empty: give it 1 to 128 characters")]
    Empty,
    #[error("the id has {length} characters: at most 128 are allowed")]
    TooLong { length: usize },
    #[error(
        "the id has the character {character:?}: use ASCII letters, digits and - : . + % _ # * ? ! ( ) , = @ ; $ '"
    )]
    Character { character: char },
}

/// The longest id of a device or of a module, in characters (Azure IoT Hub, identity registry).
pub const DEVICE_ID_CHARACTERS_MAX: usize = 128;

/// Between a device's id and that of its module. No id contains it.
const SEPARATOR: char = '/';
/// Of those that an id may have.
const SMALLEST_CHARACTER: char = '!';

/// Who connects, speaks and is spoken to: a device, or a module of one.
///
/// A device's id has 1 to 128 characters of ASCII letters, digits and `- : . + % _ # * ? ! ( ) , = @ ; $ '`,
/// case-sensitive. A module is named by its device's id, a slash and its own id. Parsing gives devices only, so that nobody
/// outside names a module by accident: a module is made by [`DeviceId::module`], and read back by [`DeviceId::from_key`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId(Arc<str>);

impl DeviceId {
    /// Reads what [`DeviceId::as_str`] has written: for records and messages between nodes.
    pub fn from_key(key: &str) -> Result<Self, InvalidId> {
        match key.split_once(SEPARATOR) {
            None => key.parse(),
            Some((device, module)) => Ok(device.parse::<Self>()?.module(&module.parse()?)),
        }
    }

    /// No id sorts before it.
    pub fn smallest() -> Self {
        Self(SMALLEST_CHARACTER.to_string().into())
    }

    /// The key of all that is kept of it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Names a module of this device.
    pub fn module(&self, module: &ModuleId) -> Self {
        Self(format!("{}{SEPARATOR}{module}", self.names().0).into())
    }

    /// The device's own id and, of a module, the module's.
    pub fn names(&self) -> (&str, Option<&str>) {
        match self.0.split_once(SEPARATOR) {
            None => (&self.0, None),
            Some((device, module)) => (device, Some(module)),
        }
    }

    pub fn is_module(&self) -> bool {
        self.0.contains(SEPARATOR)
    }

    /// The device itself, or the one whose module it is.
    pub fn owner(&self) -> Self {
        match self.names() {
            (_, None) => self.clone(),
            (device, Some(_)) => Self(device.into()),
        }
    }
}

impl FromStr for DeviceId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        check_id(text, DEVICE_ID_CHARACTERS_MAX).map(Self)
    }
}

/// What a device calls one of its modules: an id by the rules of devices' ids.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModuleId(Arc<str>);

impl ModuleId {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ModuleId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        check_id(text, DEVICE_ID_CHARACTERS_MAX).map(Self)
    }
}

impl fmt::Display for ModuleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The longest command id, in characters (Azure IoT Hub, cloud-to-device messages).
pub const COMMAND_ID_CHARACTERS_MAX: usize = 128;

/// What its sender calls a command: 1 to 128 characters of the set that device ids have. Within a mailbox it names one
/// command, so that a send that is repeated adds none.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CommandId(Arc<str>);

impl CommandId {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for CommandId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        check_id(text, COMMAND_ID_CHARACTERS_MAX).map(Self)
    }
}

impl fmt::Display for CommandId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn check_id(text: &str, characters_max: usize) -> Result<Arc<str>, InvalidId> {
    if text.is_empty() {
        return Err(InvalidId::Empty);
    }
    if let Some(character) = text.chars().find(|character| !is_id_character(*character)) {
        return Err(InvalidId::Character { character });
    }
    // Every character is one byte from here on.
    if text.len() > characters_max {
        return Err(InvalidId::TooLong { length: text.len() });
    }
    Ok(text.into())
}

fn is_id_character(character: char) -> bool {
    character.is_ascii_alphanumeric() || "-:.+%_#*?!(),=@;$'".contains(character)
}

/// How many shards a cluster has: 1 to 4096, fixed when it is created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShardCount(NonZeroU32);

impl ShardCount {
    pub const MAX: u32 = 4096;

    pub fn new(count: u32) -> Option<Self> {
        NonZeroU32::new(count).filter(|count| count.get() <= Self::MAX).map(Self)
    }

    pub fn get(self) -> u32 {
        self.0.get()
    }

    /// Every shard, in order.
    pub fn shards(self) -> impl Iterator<Item = ShardId> {
        (0..self.0.get()).map(ShardId)
    }
}

/// One of the parts that devices are spread over. Shards are numbered from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId(u32);

impl ShardId {
    pub fn new(number: u32, count: ShardCount) -> Option<Self> {
        (number < count.get()).then_some(Self(number))
    }

    /// The shard of a device: FNV-1a over the bytes of its id, finished with the mixer of `MurmurHash3`, because FNV-1a
    /// alone spreads short, similar ids unevenly. It may never change: it says where stored data is. A module is with its
    /// device, so that one entry can change both.
    pub fn of(device: &DeviceId, count: ShardCount) -> Self {
        let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
        for byte in device.names().0.bytes() {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        hash ^= hash >> 33;
        Self((hash % u64::from(count.get())) as u32)
    }

    pub fn number(self) -> u32 {
        self.0
    }
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A Raft group: the meta group, which keeps what the whole cluster must agree on, or the group of one shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GroupId {
    Meta,
    Shard(ShardId),
}

impl GroupId {
    /// The number of the group on disk and on the wire: 0 is meta, shard `n` is `n + 1`.
    pub fn number(self) -> u32 {
        match self {
            Self::Meta => 0,
            Self::Shard(shard) => shard.0 + 1,
        }
    }

    pub fn from_number(number: u32) -> Option<Self> {
        match number {
            0 => Some(Self::Meta),
            n if n <= ShardCount::MAX => Some(Self::Shard(ShardId(n - 1))),
            _ => None,
        }
    }
}

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Meta => f.write_str("meta"),
            Self::Shard(shard) => write!(f, "shard {shard}"),
        }
    }
}

/// A node and its generation, in one number, so that a wiped node that comes back under its old name is another
/// member: Raft must never meet a voter that has forgotten its votes (invariant I-35).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(u64);

impl NodeId {
    /// `number` is what the operator wrote in the configuration; `generation` counts the disks it has had.
    pub fn new(number: u32, generation: u16) -> Self {
        Self(u64::from(number) << 16 | u64::from(generation))
    }

    pub fn number(self) -> u32 {
        (self.0 >> 16) as u32
    }

    pub fn generation(self) -> u16 {
        self.0 as u16
    }

    pub fn to_u64(self) -> u64 {
        self.0
    }

    pub fn from_u64(id: u64) -> Self {
        Self(id)
    }
}

impl From<u64> for NodeId {
    fn from(id: u64) -> Self {
        Self(id)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.generation() {
            0 => write!(f, "{}", self.number()),
            generation => write!(f, "{}.{generation}", self.number()),
        }
    }
}

/// A replica of a group: the node that it is on, and its incarnation, which counts from 0 the replicas of this group that
/// the node has had. Raft knows replicas by this and meets none twice: one that was moved away, or was found damaged, and
/// comes back begins with nothing, and an empty voter under an old id could help to elect a second leader (I-34, I-35).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplicaId(u64);

impl ReplicaId {
    /// A node's id takes the lower 48 bits.
    const INCARNATION_SHIFT: u32 = 48;

    pub fn new(node: NodeId, incarnation: u16) -> Self {
        Self(u64::from(incarnation) << Self::INCARNATION_SHIFT | node.to_u64())
    }

    /// The first replica of a group on a node: nearly all are.
    pub fn first(node: NodeId) -> Self {
        Self::new(node, 0)
    }

    pub fn node(self) -> NodeId {
        NodeId(self.0 & ((1 << Self::INCARNATION_SHIFT) - 1))
    }

    pub fn incarnation(self) -> u16 {
        (self.0 >> Self::INCARNATION_SHIFT) as u16
    }

    pub fn to_u64(self) -> u64 {
        self.0
    }

    pub fn from_u64(id: u64) -> Self {
        Self(id)
    }
}

impl From<u64> for ReplicaId {
    fn from(id: u64) -> Self {
        Self(id)
    }
}

impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.incarnation() {
            0 => self.node().fmt(f),
            incarnation => write!(f, "{}#{incarnation}", self.node()),
        }
    }
}

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(u64);

        impl $name {
            pub const fn new(value: u64) -> Self {
                Self(value)
            }

            pub const fn get(self) -> u64 {
                self.0
            }

            /// The one after this. At one a nanosecond it would last 584 years before it wrapped.
            pub const fn next(self) -> Self {
                Self(self.0.wrapping_add(1))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

counter! {
    /// Which connection of a device is speaking. It grows by one each time the device connects, so whatever
    /// carries an older epoch comes from a connection that has been replaced and has no effect (P4).
    SessionEpoch
}
counter! {
    /// The version of a twin or of one of its sections: starts at 1 and grows by one with each accepted change (P2).
    Version
}
counter! {
    /// What an identity's or a twin's `ETag` names: one state of it. A newer state has a greater one.
    Etag
}
counter! {
    /// Tells a device from one that had the same id before it was deleted.
    GenerationId
}
counter! {
    /// The place of a command in its mailbox, counted from 1 in the order of acceptance. It is never given twice.
    CommandSequence
}
counter! {
    /// Counts what a connection was to be sent from its mailbox, from 1, so that its node notices what was lost on the
    /// way to it and what is repeated.
    DeliveryNumber
}
counter! {
    /// Tells a direct method's call from all others of its shard. The answer must carry it.
    CallId
}
counter! {
    /// The place of a message in its shard's stream, counted from 0, without holes (P1).
    Offset
}
counter! {
    /// Milliseconds since 1970-01-01 UTC, stamped on a log entry by the leader that proposed it. It never falls
    /// within a group (invariant I-40), so a later entry has a later or equal time.
    LogTime
}

impl DeliveryNumber {
    /// The one before this; that before the first is 0.
    pub const fn before(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

impl Offset {
    pub const fn plus(self, count: u64) -> Self {
        Self(self.0.wrapping_add(count))
    }
}

impl LogTime {
    pub const fn plus_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }

    pub const fn minus_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_sub(ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_id_sorts_before_the_smallest() {
        let characters = (0..=char::MAX as u32).filter_map(char::from_u32);
        assert_eq!(characters.filter(|c| is_id_character(*c)).min(), Some(SMALLEST_CHARACTER));
        assert_eq!(DeviceId::smallest().as_str().parse(), Ok(DeviceId::smallest()));
    }

    #[test]
    fn an_id_has_1_to_128_characters_of_the_documented_set() {
        assert!("pump-7:Hall.2+%_#*?!(),=@;$'".parse::<DeviceId>().is_ok());
        assert_eq!("".parse::<DeviceId>(), Err(InvalidId::Empty));
        assert_eq!("a/b".parse::<DeviceId>(), Err(InvalidId::Character { character: '/' }));
        assert_eq!("é".parse::<DeviceId>(), Err(InvalidId::Character { character: 'é' }));
        assert!("a".repeat(128).parse::<DeviceId>().is_ok());
        assert_eq!("a".repeat(129).parse::<DeviceId>(), Err(InvalidId::TooLong { length: 129 }));
    }

    #[test]
    fn a_module_is_named_by_its_device_and_its_own_id() {
        let device: DeviceId = "pump#1".parse().expect("a legal id");
        let module = device.module(&"$ai".parse().expect("a legal id"));
        assert_eq!(module.as_str(), "pump#1/$ai");
        assert_eq!(module.names(), ("pump#1", Some("$ai")));
        assert_eq!((module.is_module(), device.is_module()), (true, false));
        assert_eq!((module.owner(), device.owner()), (device.clone(), device.clone()));
        for id in [module, device] {
            assert_eq!(DeviceId::from_key(id.as_str()), Ok(id));
        }
        for key in ["", "/", "d/", "/m", "d/m/x", "d/é"] {
            assert!(DeviceId::from_key(key).is_err(), "{key}");
        }
    }

    #[test]
    fn a_module_is_in_the_shard_of_its_device() {
        let count = ShardCount::new(4096).expect("a legal count");
        for n in 0..100 {
            let device: DeviceId = format!("d{n}").parse().expect("a legal id");
            let module = device.module(&format!("m{n}").parse().expect("a legal id"));
            assert_eq!(ShardId::of(&module, count), ShardId::of(&device, count));
        }
    }

    /// The numbers were computed by another program from the description of the hash.
    #[test]
    fn the_shard_of_a_device_never_changes_between_versions() {
        let shards = |count: u32, ids: &[&str]| -> Vec<u32> {
            let count = ShardCount::new(count).expect("a legal count");
            let shard = |id: &&str| ShardId::of(&id.parse().expect("a legal id"), count).number();
            ids.iter().map(shard).collect()
        };
        assert_eq!(shards(16, &["thermometer-1", "thermometer-2", "a", "b"]), [15, 1, 11, 0]);
        assert_eq!(shards(4096, &["thermometer-1", "a"]), [255, 3675]);
    }

    #[test]
    fn similar_ids_spread_evenly_over_the_shards() {
        let count = ShardCount::new(16).expect("16 is a legal count");
        let mut devices = [0_u32; 16];
        for n in 0..16_000 {
            let device = format!("d{n}").parse().expect("a legal id");
            devices[ShardId::of(&device, count).number() as usize] += 1;
        }
        assert!(devices.iter().all(|devices| (900..1100).contains(devices)), "{devices:?}");
    }

    #[test]
    fn a_node_of_another_generation_is_another_node() {
        assert_ne!(NodeId::new(3, 0), NodeId::new(3, 1));
        assert_eq!(NodeId::new(3, 1).to_string(), "3.1");
        assert_eq!(NodeId::from_u64(NodeId::new(3, 1).to_u64()), NodeId::new(3, 1));
    }

    #[test]
    fn a_replica_that_comes_back_to_its_node_is_another_replica() {
        let node = NodeId::new(u32::MAX, u16::MAX);
        let (first, second) = (ReplicaId::first(node), ReplicaId::new(node, 1));
        assert_ne!(first, second);
        assert_eq!((second.node(), second.incarnation()), (node, 1));
        assert_eq!(
            first.to_u64(),
            node.to_u64(),
            "what is on disk was written before there were incarnations"
        );
        assert_eq!(ReplicaId::new(NodeId::new(3, 1), 2).to_string(), "3.1#2");
    }
}
