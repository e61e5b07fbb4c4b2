//! The promises of the coordination store, compared with a model that is a plain map.
#![allow(clippy::unwrap_used)]

use super::history;
use super::limits::{MAX_EVENTS, MAX_IDS, MAX_KEY_BYTES, REVISIONS_PER_INCARNATION};
use super::*;
use bytes::Bytes;
use proptest::prelude::*;
use std::collections::BTreeMap;

fn put(key: &str, expect: Expect, value: &[u8]) -> Request {
    let action = WriteAction::Put { value: Bytes::copy_from_slice(value), content_type: "text/plain".into() };
    Request { key: key.into(), expect, action, id: None }
}

fn delete(key: &str, expect: Expect) -> Request {
    Request { key: key.into(), expect, action: WriteAction::Delete, id: None }
}

fn with_id(mut request: Request, id: &str) -> Request {
    request.id = Some(id.into());
    request
}

#[test]
fn conditions_hold_or_nothing_happens() {
    let mut store = CoordinationStore::default();
    let first = store.apply(put("k", Expect::Absent, b"1"), 1).unwrap();
    assert_eq!(first, Written { revision: 1, created: true });
    let before = store.clone();
    for (request, refusal) in [
        (put("k", Expect::Absent, b"2"), RequestRefusal::Mismatch(Some(1))),
        (put("k", Expect::Revision(7), b"2"), RequestRefusal::Mismatch(Some(1))),
        (put("other", Expect::Present, b"2"), RequestRefusal::Mismatch(None)),
        (delete("k", Expect::Revision(2)), RequestRefusal::Mismatch(Some(1))),
        (delete("other", Expect::Anything), RequestRefusal::Absent),
        (put("", Expect::Anything, b"2"), RequestRefusal::KeyLength(0)),
        (put(&"k".repeat(MAX_KEY_BYTES + 1), Expect::Anything, b"2"), RequestRefusal::KeyLength(MAX_KEY_BYTES + 1)),
        (put("k", Expect::Anything, &vec![0; MAX_VALUE_BYTES + 1]), RequestRefusal::ValueTooLarge(MAX_VALUE_BYTES + 1)),
    ] {
        assert_eq!(store.apply(request.clone(), 1), Err(refusal), "{request:?}");
        assert_eq!(store, before, "a refusal changed something: {request:?}");
    }
    assert_eq!(store.apply(put("k", Expect::Revision(1), b"2"), 2).unwrap(), Written { revision: 2, created: false });
    let entry = store.get("k").unwrap();
    assert_eq!((entry.created, entry.modified, entry.version, &entry.value[..]), (1, 2, 2, &b"2"[..]));
    store.apply(delete("k", Expect::Revision(2)), 3).unwrap();
    // A key that is created again is a new key: no earlier revision matches it.
    assert_eq!(store.apply(put("k", Expect::Anything, b"3"), 4).unwrap(), Written { revision: 4, created: true });
    assert_eq!((store.get("k").unwrap().created, store.get("k").unwrap().version), (4, 1));
}

#[test]
fn a_full_store_takes_what_makes_it_smaller() {
    let mut store = CoordinationStore::default();
    let mut last = 0;
    let refusal = loop {
        match store.apply(put(&format!("big/{last}"), Expect::Anything, &vec![7; MAX_VALUE_BYTES]), 1) {
            Ok(_) => last += 1,
            Err(refusal) => break refusal,
        }
    };
    assert!(matches!(refusal, RequestRefusal::Full(_)), "{refusal:?}");
    assert!(store.bytes() <= MAX_STORE_BYTES && store.bytes() > MAX_STORE_BYTES - 2 * MAX_VALUE_BYTES as u64);
    store.apply(put("big/0", Expect::Anything, b"small"), 1).unwrap();
    store.apply(put("new", Expect::Anything, &vec![7; MAX_VALUE_BYTES - 1000]), 1).unwrap();

    let mut store = CoordinationStore::default();
    for n in 0..MAX_KEYS {
        store.apply(put(&format!("{n}"), Expect::Anything, b""), 1).unwrap();
    }
    assert!(matches!(store.apply(put("one more", Expect::Anything, b""), 1), Err(RequestRefusal::Full(_))));
    store.apply(put("0", Expect::Anything, b"x"), 1).unwrap();
    // A store that is full in every way fits into one frame of a state transfer, with room for
    // the rest of the state.
    let encoded = postcard::to_stdvec(&store).unwrap();
    assert!(encoded.len() < evenkeel_rpc::MAX_FRAME_BYTES / 4 * 3, "{} bytes", encoded.len());
    assert_eq!(postcard::from_bytes::<CoordinationStore>(&encoded).unwrap(), store);
}

#[test]
fn a_repeated_request_takes_effect_once() {
    let mut store = CoordinationStore::default();
    let request = with_id(put("k", Expect::Absent, b"1"), "a");
    let written = store.apply(request.clone(), 1000).unwrap();
    store.apply(put("k", Expect::Anything, b"2"), 1000).unwrap();
    // Without the key this would be a mismatch, although the request was effective. With it the
    // lost answer is given again.
    assert_eq!(store.apply(request.clone(), 1000 + REMEMBER_MS - 1), Ok(written));
    assert_eq!(&store.get("k").unwrap().value[..], b"2");
    assert_eq!(store.apply(with_id(put("k", Expect::Absent, b"other"), "a"), 2000), Err(RequestRefusal::IdReused));
    // A rejected request is not remembered. It changed nothing, and may succeed later.
    let conditional = with_id(put("k", Expect::Revision(3), b"4"), "b");
    assert_eq!(store.apply(conditional.clone(), 2000), Err(RequestRefusal::Mismatch(Some(2))));
    store.apply(put("k", Expect::Anything, b"3"), 2000).unwrap();
    assert_eq!(store.apply(conditional, 2000).unwrap().revision, 4);
    // A time that goes back forgets nothing; a later time does.
    assert_eq!(store.apply(request.clone(), 5), Ok(written));
    assert_eq!(store.apply(request, 1000 + REMEMBER_MS), Err(RequestRefusal::Mismatch(Some(4))));
}

#[test]
fn ids_are_refused_rather_than_forgotten_early() {
    let mut store = CoordinationStore::default();
    for n in 0..MAX_IDS {
        store.apply(with_id(put("k", Expect::Anything, b""), &format!("{n}")), 1).unwrap();
    }
    assert_eq!(store.apply(with_id(put("k", Expect::Anything, b""), "x"), 1), Err(RequestRefusal::TooManyIds));
    assert_eq!(store.apply(with_id(put("k", Expect::Anything, b""), "0"), 1).unwrap().revision, 1);
    store.apply(put("k", Expect::Anything, b""), 1).unwrap();
    store.apply(with_id(put("k", Expect::Anything, b""), "x"), 1 + REMEMBER_MS).unwrap();
}

#[test]
fn a_watcher_misses_nothing_or_is_notified() {
    let mut store = CoordinationStore::default();
    let total = MAX_EVENTS as u64 + 100;
    for n in 1..=total {
        store.apply(put(if n % 2 == 0 { "even" } else { "odd" }, Expect::Anything, b""), 1).unwrap();
    }
    let since = |since, prefix, most| store.history().since(since, prefix, most, store.revision());
    assert_eq!(since(99, "", 10), Err(Compacted { oldest: 100 }));
    let batch = since(100, "", 10).unwrap();
    assert_eq!(batch.events.iter().map(|e| e.revision).collect::<Vec<_>>(), (101..=110).collect::<Vec<_>>());
    assert_eq!(batch.seen, 110);
    let batch = since(110, "even", 3).unwrap();
    assert_eq!(batch.events.iter().map(|e| e.revision).collect::<Vec<_>>(), [112, 114, 116]);
    // No key has the prefix: the watcher has seen everything all the same, and does not fall
    // behind.
    assert_eq!(since(110, "none", 3).unwrap(), history::Batch { events: vec![], seen: total });
    assert_eq!(since(total + 5, "", 3).unwrap(), history::Batch { events: vec![], seen: total + 5 });
}

/// R30: after a restoration no revision is used twice, and no watch continues over the lost
/// changes.
#[test]
fn a_restored_store_jumps_ahead() {
    let mut store = CoordinationStore::default();
    store.apply(with_id(put("k", Expect::Anything, b"1"), "a"), 1).unwrap();
    store.begin_incarnation(1);
    assert_eq!(store.revision(), 1 + REVISIONS_PER_INCARNATION);
    let revision = store.revision();
    assert_eq!(store.history().since(5, "", 10, revision), Err(Compacted { oldest: revision }));
    let written = store.apply(put("k", Expect::Revision(1), b"2"), 2).unwrap();
    assert_eq!(written.revision, revision + 1);
    assert_eq!(store.history().since(revision, "", 10, written.revision).unwrap().events.len(), 1);
}

/// Few keys and values, so that conditions hold about half of the time.
fn requests() -> impl Strategy<Value = Vec<(Request, u64)>> {
    let key = prop::sample::select(vec!["a", "a/b", "a/c", "b", "ä"]);
    let expect = prop_oneof![
        3 => Just(Expect::Anything),
        1 => Just(Expect::Absent),
        1 => Just(Expect::Present),
        3 => (0..40u64).prop_map(Expect::Revision),
    ];
    let action = prop_oneof![3 => Just(true), 1 => Just(false)];
    let id = prop::option::weighted(0.3, 0..8u8);
    let one =
        (key, expect, action, any::<u8>(), id, 0..3 * REMEMBER_MS).prop_map(|(key, expect, puts, byte, id, at)| {
            let request = if puts { put(key, expect, &[byte % 4]) } else { delete(key, expect) };
            (Request { id: id.map(|id| id.to_string()), ..request }, at)
        });
    prop::collection::vec(one, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Compares with a plain map: verdicts, entries, lists. The history from any revision leads to
    /// the present entries.
    #[test]
    fn it_does_what_a_map_does(requests in requests()) {
        let mut store = CoordinationStore::default();
        let mut model: BTreeMap<String, (Vec<u8>, u64)> = BTreeMap::new();
        let mut states = vec![model.clone()];
        let mut done: Vec<(Request, Written, u64)> = Vec::new();
        let mut now = 0;
        for (request, at) in requests {
            now = now.max(at);
            let repeated = request.id.as_ref().and_then(|id| {
                done.iter().rev().find(|(other, _, at)| other.id.as_ref() == Some(id) && at + REMEMBER_MS > now)
            });
            let result = store.apply(request.clone(), at);
            if let Some((other, written, _)) = repeated {
                let same = Request { id: None, ..other.clone() } == Request { id: None, ..request };
                prop_assert_eq!(result, if same { Ok(*written) } else { Err(RequestRefusal::IdReused) });
                continue;
            }
            let found = model.get(&request.key).map(|(_, revision)| *revision);
            let allowed = match request.expect {
                Expect::Anything => true,
                Expect::Absent => found.is_none(),
                Expect::Present => found.is_some(),
                Expect::Revision(revision) => found == Some(revision),
            };
            match (&request.action, allowed) {
                (_, false) => prop_assert_eq!(result, Err(RequestRefusal::Mismatch(found))),
                (WriteAction::Delete, true) if found.is_none() => prop_assert_eq!(result, Err(RequestRefusal::Absent)),
                (action, true) => {
                    let written = Written {
                        revision: states.len() as u64,
                        created: found.is_none() && *action != WriteAction::Delete,
                    };
                    prop_assert_eq!(&result, &Ok(written));
                    match action {
                        WriteAction::Put { value, .. } => {
                            model.insert(request.key.clone(), (value.to_vec(), written.revision));
                        }
                        WriteAction::Delete => drop(model.remove(&request.key)),
                    }
                    states.push(model.clone());
                    done.push((request, written, now));
                }
            }
        }
        prop_assert_eq!(store.revision(), states.len() as u64 - 1);
        let bytes = store.list("", None).map(|(key, entry)| entry.cost(key)).sum::<u64>();
        prop_assert_eq!(store.bytes(), bytes);
        let listed = |prefix: &str, after: Option<&str>| {
            store.list(prefix, after).map(|(key, e)| (key.to_string(), (e.value.to_vec(), e.modified))).collect::<Vec<_>>()
        };
        for (prefix, after) in [("", None), ("a", None), ("a/", Some("a/b")), ("a", Some("A")), ("b", Some("c"))] {
            let expected: Vec<_> = model.iter()
                .filter(|(key, _)| key.starts_with(prefix) && after.is_none_or(|after| key.as_str() > after))
                .map(|(key, held)| (key.clone(), held.clone()))
                .collect();
            prop_assert_eq!(listed(prefix, after), expected, "prefix {:?} after {:?}", prefix, after);
        }
        for (since, state) in states.iter().enumerate() {
            let mut state = state.clone();
            for event in store.history().since(since as u64, "", usize::MAX, store.revision()).unwrap().events {
                match event.entry {
                    Some(entry) => drop(state.insert(event.key.to_string(), (entry.value.to_vec(), entry.modified))),
                    None => drop(state.remove(&*event.key)),
                }
            }
            prop_assert_eq!(&state, &model, "from revision {}", since);
        }
        let encoded = postcard::to_stdvec(&store).unwrap();
        prop_assert_eq!(postcard::from_bytes::<CoordinationStore>(&encoded).unwrap(), store);
    }
}
