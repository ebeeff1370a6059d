//! The disk against what it claims: a model of names, another file system, and a program that syncs or does not.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use fuser::Errno;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tempfile::TempDir;

use super::behaviour::{Behaviour, Flips, Sync, Writes};
use super::block::tests::block;
use super::mounted::{Disk, obstacle};
use super::server::now;
use super::volume::{Kept, Kind, Owner, ROOT, Volume};

/// Paths of files with their content, and of directories with `None`.
type Tree = BTreeMap<PathBuf, Option<Vec<u8>>>;

/// A mounted disk, or `None` and a line that says why there is none on this machine.
fn mounted() -> Option<(TempDir, Disk)> {
    if let Some(obstacle) = obstacle() {
        eprintln!("left out: {obstacle}");
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let (mountpoint, backing) = (folder.path().join("disk"), folder.path().join("backing"));
    fs::create_dir(&mountpoint).unwrap();
    fs::create_dir(&backing).unwrap();
    let disk = Disk::mount(&mountpoint, &backing).unwrap();
    Some((folder, disk))
}

fn tree(root: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut open = vec![root.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().to_owned();
            if path.is_dir() {
                tree.insert(name, None);
                open.push(path);
            } else {
                tree.insert(name, Some(fs::read(&path).unwrap()));
            }
        }
    }
    tree
}

fn sync_folder(path: &Path) {
    File::open(path).unwrap().sync_all().unwrap();
}

#[test]
fn a_program_finds_after_a_power_loss_exactly_what_it_synced() {
    let Some((_folder, disk)) = mounted() else { return };
    let at = |name: &str| disk.mountpoint().join(name);
    let mut log = File::create(at("log")).unwrap();
    log.write_all(b"synced|").unwrap();
    log.sync_data().unwrap();
    fs::write(at("never synced"), b"bytes").unwrap();
    fs::create_dir(at("folder")).unwrap();
    sync_folder(disk.mountpoint());
    log.write_all(b"not synced").unwrap();
    fs::rename(at("log"), at("renamed")).unwrap();
    let mut nameless = File::create(at("folder/nameless")).unwrap();
    nameless.write_all(b"synced without its folder").unwrap();
    nameless.sync_all().unwrap();
    assert_eq!(fs::read(at("renamed")).unwrap(), b"synced|not synced");
    drop((log, nameless));
    let loss = disk.lose_power(Kept::Nothing).unwrap();
    let expected = Tree::from([
        ("folder".into(), None),
        ("log".into(), Some(b"synced|".to_vec())),
        ("never synced".into(), Some(Vec::new())),
    ]);
    assert_eq!(tree(disk.mountpoint()), expected);
    assert_eq!((loss.names, loss.writes, loss.bytes), (2, 2, 15));
}

#[test]
fn a_disk_that_lies_forgets_what_it_said_was_synced() {
    let Some((_folder, disk)) = mounted() else { return };
    let path = disk.mountpoint().join("log");
    let mut log = File::create(&path).unwrap();
    log.write_all(b"before|").unwrap();
    log.sync_all().unwrap();
    sync_folder(disk.mountpoint());
    disk.lie();
    log.write_all(b"after").unwrap();
    log.sync_all().expect("it says that all is well");
    drop(log);
    disk.lose_power(Kept::Nothing).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"before|");
}

#[test]
fn a_disk_that_lies_goes_back_as_a_whole_again_and_again() {
    let Some((_folder, disk)) = mounted() else { return };
    let root = disk.mountpoint();
    fs::write(root.join("old"), b"kept").unwrap();
    fs::write(root.join("current"), b"1").unwrap();
    for name in ["old", "current"] {
        File::open(root.join(name)).unwrap().sync_all().unwrap();
    }
    sync_folder(root);
    disk.lie();
    let before = tree(root);
    for life in 0..3 {
        let new = root.join(format!("new-{life}"));
        fs::write(&new, b"2").unwrap();
        File::open(&new).unwrap().sync_all().unwrap();
        fs::rename(&new, root.join("current")).unwrap();
        fs::remove_file(root.join("old")).unwrap();
        sync_folder(root);
        assert_ne!(tree(root), before);
        disk.lose_power(Kept::Some(life)).unwrap();
        assert_eq!(tree(root), before, "life {life}");
    }
}

#[test]
fn without_faults_it_is_a_file_system_like_any_other() {
    let Some((_folder, disk)) = mounted() else { return };
    let other = tempfile::tempdir().unwrap();
    for seed in 0..20 {
        let outcomes = [disk.mountpoint(), other.path()].map(|root| {
            let mut random = StdRng::seed_from_u64(seed);
            let outcomes: Vec<_> = (0..200).map(|_| operate(root, &mut random)).collect();
            (outcomes, tree(root))
        });
        assert_eq!(outcomes[0], outcomes[1], "seed {seed}");
    }
}

/// One random operation below `root`; its outcome as a program sees it.
fn operate(root: &Path, random: &mut StdRng) -> Result<Vec<u8>, Option<i32>> {
    let path = |random: &mut StdRng| {
        let file = format!("f{}", random.random_range(0..6));
        match random.random_range(0..4) {
            0 => root.join(format!("d{}", random.random_range(0..3))),
            1 => root.join(format!("d{}", random.random_range(0..3))).join(file),
            _ => root.join(file),
        }
    };
    let (one, two) = (path(random), path(random));
    let (offset, length) = (random.random_range(0..20_000_u64), random.random_range(0..9000));
    let writable = || OpenOptions::new().write(true).open(&one);
    let (kind, random_byte) = (random.random_range(0..11), random.random());
    let outcome: io::Result<Vec<u8>> = match kind {
        0 => File::create(&one).map(|_| Vec::new()),
        1 | 2 => writable().and_then(|file| {
            file.write_all_at(&vec![random_byte; length], offset)?;
            file.metadata().map(|seen| seen.len().to_le_bytes().to_vec())
        }),
        3 => OpenOptions::new().append(true).open(&one).and_then(|mut file| {
            file.write_all(&vec![7; length])?;
            Ok(file.stream_position()?.to_le_bytes().to_vec())
        }),
        4 => writable().and_then(|file| file.set_len(offset)).map(|()| Vec::new()),
        5 => fs::remove_file(&one).map(|()| Vec::new()),
        6 => fs::create_dir(&one).map(|()| Vec::new()),
        7 => fs::remove_dir(&one).map(|()| Vec::new()),
        8 => fs::rename(&one, &two).map(|()| Vec::new()),
        9 => fs::hard_link(&one, &two).map(|()| Vec::new()),
        _ => File::open(&one).and_then(|mut file| {
            file.seek(SeekFrom::Start(offset))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            Ok(bytes)
        }),
    };
    outcome.map_err(|error| error.raw_os_error())
}

#[test]
fn a_file_that_lost_its_name_lives_until_it_is_closed() {
    let Some((_folder, disk)) = mounted() else { return };
    let path = disk.mountpoint().join("file");
    let mut file = OpenOptions::new().create_new(true).read(true).write(true).open(&path).unwrap();
    fs::remove_file(&path).unwrap();
    file.write_all(b"nameless").unwrap();
    file.rewind().unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "nameless");
}

#[test]
fn a_bit_comes_back_wrong_while_the_disk_is_bad_and_what_is_stored_is_untouched() {
    let Some((_folder, disk)) = mounted() else { return };
    let path = disk.mountpoint().join("000007.sst");
    let sound = block(&[5; 3_000], 4);
    fs::write(&path, sound.repeat(20)).unwrap();
    // As a store holds it: open all the time, and read before.
    let file = File::open(&path).unwrap();
    let read = |place: usize| {
        let mut bytes = vec![0; sound.len()];
        file.read_exact_at(&mut bytes, (place * sound.len()) as u64).unwrap();
        bytes.iter().zip(&sound).map(|(one, other)| (one ^ other).count_ones()).sum::<u32>()
    };
    assert_eq!((0..20).map(read).sum::<u32>(), 0);
    disk.behave(Behaviour {
        flips: Some(Flips::Blocks { blocks: 2, seed: 1 }),
        ..Behaviour::default()
    });
    let wrong: Vec<u32> = (0..20).map(read).collect();
    assert_eq!((wrong.iter().sum::<u32>(), wrong.iter().max()), (2, Some(&1)), "{wrong:?}");
    assert_eq!((0..20).map(read).collect::<Vec<_>>(), wrong, "read again it is as wrong");
    assert_eq!(disk.counters().flipped, 4);
    disk.behave(Behaviour::default());
    assert_eq!((0..20).map(read).sum::<u32>(), 0);
    assert_eq!(fs::read(&path).unwrap(), sound.repeat(20));
}

#[test]
fn a_log_comes_back_with_one_wrong_bit_in_its_middle() {
    let Some((_folder, disk)) = mounted() else { return };
    let paths = ["000001.log", "000002.log"].map(|name| disk.mountpoint().join(name));
    fs::write(&paths[0], vec![1; 300_000]).unwrap();
    fs::write(&paths[1], vec![2; 200_000]).unwrap();
    disk.behave(Behaviour { flips: Some(Flips::Log { seed: 1 }), ..Behaviour::default() });
    let read = fs::read(&paths[0]).unwrap();
    let wrong = read.iter().filter(|byte| **byte != 1).count();
    let bits: u32 = read.iter().map(|byte| (byte ^ 1).count_ones()).sum();
    assert_eq!((read.len(), wrong, bits), (300_000, 1, 1));
    assert_eq!(fs::read(&paths[1]).unwrap(), vec![2; 200_000], "the shorter one is sound");
    assert!(disk.counters().flipped > 0);
    disk.behave(Behaviour::default());
    assert_eq!(fs::read(&paths[0]).unwrap(), vec![1; 300_000]);
}

#[test]
fn a_hung_sync_ends_when_the_disk_is_released_and_reads_go_on_meanwhile() {
    let Some((_folder, disk)) = mounted() else { return };
    let path = disk.mountpoint().join("file");
    fs::write(&path, b"bytes").unwrap();
    disk.behave(Behaviour { sync: Sync::Hung, ..Behaviour::default() });
    let (done, ended) = mpsc::channel();
    let syncing = path.clone();
    let syncs = thread::spawn(move || {
        done.send(File::open(syncing).unwrap().sync_all().is_ok()).unwrap();
    });
    assert!(ended.recv_timeout(Duration::from_millis(200)).is_err(), "it must hang");
    assert_eq!(fs::read(&path).unwrap(), b"bytes");
    disk.behave(Behaviour::default());
    assert!(ended.recv_timeout(Duration::from_secs(10)).unwrap());
    syncs.join().unwrap();
    assert_eq!(disk.counters().delayed, 1);
}

#[test]
fn a_disk_that_goes_away_ends_the_syncs_that_hang_on_it() {
    let Some((_folder, disk)) = mounted() else { return };
    let path = disk.mountpoint().join("file");
    fs::write(&path, b"bytes").unwrap();
    disk.behave(Behaviour { sync: Sync::Hung, ..Behaviour::default() });
    let file = File::open(&path).unwrap();
    let syncs = thread::spawn(move || file.sync_all().is_err());
    while disk.counters().delayed == 0 {
        thread::yield_now();
    }
    drop(disk);
    assert!(syncs.join().unwrap(), "what was not synced must not be called synced");
}

#[test]
fn a_slow_sync_takes_its_time_and_a_failed_one_keeps_nothing() {
    let Some((_folder, disk)) = mounted() else { return };
    let path = disk.mountpoint().join("file");
    let mut file = File::create(&path).unwrap();
    sync_folder(disk.mountpoint());
    file.write_all(b"slow|").unwrap();
    let delay = Duration::from_millis(80);
    disk.behave(Behaviour { sync: Sync::Slow(delay), ..Behaviour::default() });
    let begin = tokio::time::Instant::now();
    file.sync_all().unwrap();
    assert!(begin.elapsed() >= delay);
    disk.behave(Behaviour { sync: Sync::Fails, ..Behaviour::default() });
    file.write_all(b"failed").unwrap();
    assert_eq!(file.sync_all().unwrap_err().raw_os_error(), Some(Errno::EIO.into()));
    disk.behave(Behaviour::default());
    file.sync_all().unwrap();
    drop(file);
    disk.lose_power(Kept::Nothing).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"slow|");
}

#[test]
fn a_full_disk_refuses_growth_alone_and_says_how_full_it_is() {
    let Some((_folder, disk)) = mounted() else { return };
    let path = disk.mountpoint().join("file");
    fs::write(&path, [1; 8192]).unwrap();
    let full = Behaviour { capacity_bytes: Some(10_000), ..Behaviour::default() };
    disk.behave(full);
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    let refused = file.write_all_at(&[2; 4096], 8192).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(Errno::ENOSPC.into()));
    file.write_all_at(&[3; 4096], 0).unwrap();
    assert_eq!(disk.used_bytes(), 8192);
    disk.behave(Behaviour { writes: Writes::Fail, ..full });
    let failed = file.write_all_at(&[4; 1], 0).unwrap_err();
    assert_eq!(failed.raw_os_error(), Some(Errno::EIO.into()));
    disk.behave(Behaviour::default());
    file.write_all_at(&[2; 4096], 8192).unwrap();
    assert_eq!(disk.counters().failed_writes, 2);
}

#[test]
fn a_read_only_disk_changes_neither_files_nor_names_and_is_read() {
    let Some((_folder, disk)) = mounted() else { return };
    let [path, other] = ["file", "other"].map(|name| disk.mountpoint().join(name));
    fs::write(&path, b"as it was").unwrap();
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    disk.behave(Behaviour { writes: Writes::ReadOnly, ..Behaviour::default() });
    let refused = [
        file.write_all_at(b"!", 0),
        file.set_len(1),
        fs::write(&other, b""),
        fs::remove_file(&path),
        fs::rename(&path, &other),
        fs::hard_link(&path, &other),
        fs::create_dir(&other),
    ];
    for refused in refused {
        assert_eq!(refused.unwrap_err().raw_os_error(), Some(Errno::EROFS.into()));
    }
    file.sync_all().unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"as it was");
    assert!(disk.counters().failed_writes >= 7);
    disk.behave(Behaviour::default());
    fs::rename(&path, &other).unwrap();
}

#[test]
fn a_flipped_bit_is_read_by_whoever_opens_the_file_next() {
    let Some((_folder, disk)) = mounted() else { return };
    fs::write(disk.mountpoint().join("file"), [0; 100]).unwrap();
    disk.flip_bit(Path::new("file"), 99, 7).unwrap();
    assert_eq!(fs::read(disk.mountpoint().join("file")).unwrap()[99], 0x80);
    assert!(disk.flip_bit(Path::new("missing"), 0, 0).is_err());
}

const OWNER: Owner = Owner { permissions: 0o644, user: 0, group: 0 };

/// The names of a volume, with the inode that each leads to.
fn names(volume: &Volume) -> BTreeMap<PathBuf, u64> {
    let mut names = BTreeMap::new();
    let mut open = vec![(PathBuf::new(), ROOT)];
    while let Some((path, number)) = open.pop() {
        if let Kind::Directory(entries) = &volume.inode(number).unwrap().kind {
            open.extend(entries.iter().map(|(name, inner)| (path.join(name), *inner)));
        }
        names.insert(path, number);
    }
    names
}

/// Changes names at random; the directories whose entries changed.
fn change_names(volume: &mut Volume, random: &mut StdRng) -> Vec<u64> {
    let directories: Vec<u64> = names(volume)
        .into_values()
        .filter(|number| matches!(volume.inode(*number).unwrap().kind, Kind::Directory(_)))
        .collect();
    let mut place = || {
        let directory = directories[random.random_range(0..directories.len())];
        (directory, format!("n{}", random.random_range(0..4)))
    };
    let ((one, name), (two, new_name)) = (place(), place());
    let (name, new_name) = (OsStr::new(&name), OsStr::new(&new_name));
    let done = match random.random_range(0..6) {
        0 | 1 => volume.create(one, name, OWNER, now()).map(|_| vec![one]),
        2 => volume.make_directory(one, name, OWNER, now()).map(|_| vec![one]),
        3 => volume.unlink(one, name).map(|()| vec![one]),
        4 => volume.remove_directory(one, name).map(|()| vec![one]),
        // The kernel refuses to move a directory below itself; a file cannot be one.
        _ => match volume.find(one, name).map(|from| &volume.inode(from).unwrap().kind) {
            Ok(Kind::File(_)) if (one, name) != (two, new_name) => {
                volume.rename((one, name), (two, new_name)).map(|()| vec![one, two])
            }
            _ => Err(Errno::ENOENT),
        },
    };
    done.unwrap_or_default()
}

#[test]
fn names_go_back_to_a_moment_no_earlier_than_the_last_sync() {
    let mut partly_kept = 0;
    for seed in 0..300 {
        let folder = tempfile::tempdir().unwrap();
        let mut volume = Volume::new(folder.path(), OWNER, now());
        let mut random = StdRng::seed_from_u64(seed);
        // The names after each change, and which directories it concerned.
        let mut moments = vec![(names(&volume), vec![])];
        let mut durable = 0;
        for _ in 0..60 {
            let changed = change_names(&mut volume, &mut random);
            if !changed.is_empty() {
                moments.push((names(&volume), changed));
            }
            if random.random_bool(0.1) {
                let directory = names(&volume).into_values().next().unwrap();
                volume.sync_directory(directory);
                let concerned =
                    moments.iter().rposition(|(_, changed)| changed.contains(&directory));
                durable = durable.max(concerned.unwrap_or(0));
            }
        }
        let kept = if seed % 2 == 0 { Kept::Nothing } else { Kept::Some(seed) };
        let loss = volume.lose_power(kept).unwrap();
        let moment = moments.len() - 1 - loss.names as usize;
        assert_eq!(names(&volume), moments[moment].0, "seed {seed}");
        match kept {
            Kept::Nothing => assert_eq!(moment, durable, "seed {seed}"),
            Kept::Some(_) => assert!(moment >= durable, "seed {seed}"),
        }
        partly_kept += u32::from(moment > durable && loss.names > 0);
        let reachable: std::collections::BTreeSet<u64> = names(&volume).into_values().collect();
        assert_eq!(volume.inode_count(), reachable.len(), "seed {seed}: nothing else may be held");
    }
    assert!(partly_kept > 50, "only {partly_kept} seeds kept a part");
}
