//! Budgets, and others at the same store.

use std::{
    fs::File,
    thread,
    time::{Duration, SystemTime},
};

use super::*;

fn names(store: &Store) -> Vec<String> {
    store.list().unwrap().into_iter().map(|entry| entry.id).collect()
}

fn chunks(entry: &Path) -> Vec<PathBuf> {
    folder::chunk_files(entry).unwrap().into_iter().map(|(path, _)| path).collect()
}

/// Sets when a chunk was read last, in seconds since 1970.
fn set_read(chunk: &Path, seconds: u64) {
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    File::options().write(true).open(chunk).unwrap().set_modified(time).unwrap();
}

#[test]
fn what_was_used_longest_ago_makes_room() {
    let folder = tempfile::tempdir().unwrap();
    let about = about(&[1000], Stored::F32);
    let [a, b, c, d] = [0, 1, 2, 3].map(|number| about.id(&key(number)));
    let store = Store::open(folder.path(), 40_000).unwrap();
    for number in 0..3 {
        append(&mut store.entry(&key(number), &about).unwrap(), 0..3).unwrap();
        // File systems keep no finer time.
        thread::sleep(Duration::from_millis(15));
    }
    assert_eq!(names(&store), [&c[..], &b, &a]);
    assert_eq!(there(&store.entry(&key(0), &about).unwrap(), 0..3), [0, 1, 2]);
    assert_eq!(names(&store), [&a[..], &c, &b]);
    append(&mut store.entry(&key(3), &about).unwrap(), 0..3).unwrap();
    assert_eq!(names(&store), [&d[..], &a, &c]);

    // What is open does not go, however long ago it was used.
    let open = store.entry(&key(2), &about).unwrap();
    set_read(&chunks(&folder.path().join(&c))[0], 0);
    let mut growing = store.entry(&key(3), &about).unwrap();
    append(&mut growing, 3..5).unwrap();
    growing.flush().unwrap();
    assert_eq!(names(&store), [&d[..], &c]);
    assert_eq!(there(&open, 0..3), [0, 1, 2]);

    assert_eq!(there(&growing, 0..3), [0, 1, 2]);

    // What finds no room stays in memory, is said once, and costs nobody else anything.
    append(&mut growing, 5..8).unwrap();
    let error = growing.flush().unwrap_err();
    assert!(matches!(error, Error::Data { .. }) && error.to_string().contains("in use"), "{error}");
    append(&mut growing, 8..9).unwrap();
    growing.flush().unwrap();
    assert_eq!(there(&growing, 0..10), (0..9).collect::<Vec<_>>());
    assert_eq!(names(&store), [&d[..], &c]);
    drop((open, growing));
    let mut large = store.entry(&key(4), &about).unwrap();
    assert!(large.check_fits(9).is_ok() && large.check_fits(10).is_err() && large.check_fits(usize::MAX).is_err());
    append(&mut large, 0..10).unwrap();
    let message = large.flush().unwrap_err().to_string();
    assert!(message.contains("budget") && names(&store).len() == 2, "{message}");
    assert_eq!(there(&large, 0..10).len(), 10);
    drop(large);
    assert_eq!(there(&store.entry(&key(3), &about).unwrap(), 0..10), [0, 1, 2, 3, 4]);
}

#[test]
fn rows_that_nobody_asks_for_make_room_for_those_of_the_same_entry() {
    let folder = tempfile::tempdir().unwrap();
    let about = about(&[1000], Stored::F32);
    let store = Store::open(folder.path(), 30_000).unwrap();
    for samples in [0..3, 3..6] {
        append(&mut store.entry(&key(0), &about).unwrap(), samples).unwrap();
    }
    // Three images were changed, so their rows are of no use any more.
    let mut entry = store.entry(&key(0), &about).unwrap();
    assert_eq!(there(&entry, 3..9), [3, 4, 5]);
    append(&mut entry, 6..9).unwrap();
    entry.flush().unwrap();
    assert_eq!(there(&entry, 0..9), [3, 4, 5, 6, 7, 8]);
    drop(entry);
    assert_eq!(there(&store.entry(&key(0), &about).unwrap(), 0..9), [3, 4, 5, 6, 7, 8]);
}

#[test]
fn of_an_entry_the_chunk_that_was_read_longest_ago_goes() {
    let about = about(&[1000], Stored::F32);
    // Whichever that is, and whether the entry itself needs the room or another one does.
    for (oldest, other) in (0..3).flat_map(|oldest| [(oldest, 0), (oldest, 1)]) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(about.id(&key(0)));
        let store = Store::open(folder.path(), 40_000).unwrap();
        let mut written: Vec<PathBuf> = Vec::new();
        for number in 0..3 {
            append(&mut store.entry(&key(0), &about).unwrap(), 3 * number..3 * number + 3).unwrap();
            written.extend(chunks(&path).into_iter().find(|chunk| !written.contains(chunk)));
        }
        written
            .iter()
            .zip(0..)
            .for_each(|(chunk, number)| set_read(chunk, if number == oldest { 1 } else { 2 + number }));
        let mut entry = store.entry(&key(other), &about).unwrap();
        append(&mut entry, 9..12).unwrap();
        entry.flush().unwrap();
        drop(entry);
        let left: Vec<u64> = (0..12).filter(|sample| sample / 3 != oldest && (other == 0 || *sample < 9)).collect();
        assert_eq!(there(&store.entry(&key(0), &about).unwrap(), 0..12), left, "{oldest} {other}");
        // Reading is what counts.
        let read = fs::metadata(&written[(oldest as usize + 1) % 3]).unwrap().modified().unwrap();
        assert!(read.elapsed().unwrap() < Duration::from_secs(600));
    }
}

#[test]
fn what_the_store_takes_is_noted_and_counted_where_the_note_is_of_no_use() {
    let folder = tempfile::tempdir().unwrap();
    let (about, lock) = (about(&[1000], Stored::F32), folder.path().join(".lock"));
    let store = Store::open(folder.path(), 60_000).unwrap();
    let bytes = || store.list().unwrap().iter().map(|entry| entry.bytes).sum::<u64>();
    let noted = || u64::from_le_bytes(fs::read(&lock).unwrap().try_into().unwrap());
    let mut entry = store.entry(&key(0), &about).unwrap();
    for samples in [0..3, 3..6] {
        append(&mut entry, samples).unwrap();
        entry.flush().unwrap();
        assert_eq!(noted(), bytes());
    }
    // It says more than there is once files were removed; what is then said to be too much is counted.
    let chunk = chunks(&folder.path().join(about.id(&key(0)))).remove(0);
    fs::remove_file(chunk).unwrap();
    for (note, sample) in [(u64::MAX.to_le_bytes().to_vec(), 6), (b"nonsense!".to_vec(), 7), (Vec::new(), 8)] {
        fs::write(&lock, note).unwrap();
        append(&mut entry, [sample]).unwrap();
        entry.flush().unwrap();
        assert_eq!(noted(), bytes());
    }
    // Files that came by hand are counted by the next to open the entry.
    fs::write(&lock, 0u64.to_le_bytes()).unwrap();
    append(&mut store.entry(&key(1), &about).unwrap(), 0..3).unwrap();
    assert_eq!(noted(), bytes());
}

#[test]
fn temporary_files_go_with_their_processes() {
    let filled = Filled::new();
    let [temporary, lock] = [filled.path().join(".unfreeze-x"), filled.folder.path().join(".lock")];
    fs::write(&temporary, vec![0; 1000]).unwrap();
    let before = filled.store.list().unwrap()[0].bytes;
    let writing = File::options().append(true).open(&lock).unwrap();
    writing.lock().unwrap();
    // Who has to wait for long gives up, and has the rows in memory.
    let impatient = Store { patience: Duration::from_millis(20), ..filled.store.clone() };
    let mut entry = impatient.entry(&key(0), &filled.about).unwrap();
    assert!(temporary.exists(), "somebody is writing");
    append(&mut entry, 5..7).unwrap();
    let message = entry.flush().unwrap_err().to_string();
    assert!(message.contains("another process"), "{message}");
    assert_eq!(there(&entry, 0..9).len(), 7);
    assert!(impatient.clear(&impatient.list().unwrap()[0]).is_err());
    drop((entry, writing));

    assert_eq!(there(&filled.entry(), 0..9), [0, 1, 2, 3, 4]);
    assert!(!temporary.exists());
    assert_eq!(filled.store.list().unwrap()[0].bytes, before - 1000);
}

#[test]
fn many_threads_share_a_small_store() {
    let folder = tempfile::tempdir().unwrap();
    let about = about(&[512], Stored::F32);
    // Two of the three entries, if no row is there twice.
    let budget = 2 * (24 * 2100 + 8 * 600);
    let work = |worker: u64| {
        let store = Store::open(folder.path(), budget).unwrap();
        let mut random = Random::stream(worker, "work", &[]);
        let mut written = 0;
        for _ in 0..12 {
            let mut entry = store.entry(&key(random.uniform(0.0, 3.0) as u64), &about).unwrap();
            let first = random.uniform(0.0, 16.0) as u64;
            let samples = first..first + 8;
            let found = there(&entry, samples.clone());
            let missing: Vec<u64> = samples.clone().filter(|sample| !found.contains(sample)).collect();
            append(&mut entry, missing.clone()).unwrap();
            // It may find no room beside what the others have open.
            match entry.flush() {
                Ok(()) => written += missing.len(),
                Err(error) => assert!(matches!(error, Error::Data { .. }), "{error}"),
            }
            there(&entry, samples);
            assert!(entry.notes().is_empty());
            if random.chance(0.1) {
                store.list().unwrap().iter().for_each(|entry| drop(store.clear(entry)));
            }
        }
        written
    };
    let written: usize = thread::scope(|scope| {
        let workers: Vec<_> = (0..4).map(|worker| scope.spawn(move || work(worker))).collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).sum()
    });
    assert!(written > 50, "{written}");
    let store = Store::open(folder.path(), budget).unwrap();
    assert!(store.list().unwrap().iter().map(|entry| entry.bytes).sum::<u64>() <= budget);
    assert_eq!(store.verify(false).unwrap().damaged, []);
}
