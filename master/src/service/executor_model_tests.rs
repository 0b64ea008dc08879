//! Random calls of two sessions, with kills and losses of power between them, against a model.

use proptest::prelude::*;

use super::*;

/// What a mount does until the power goes: calls by two sessions, some of which wait for the log.
#[derive(Clone, Debug)]
enum Step {
    Create(usize, usize),
    Unlink(usize, usize),
    Rename(usize, usize, usize),
    Write(usize, usize, u8),
    Sync,
    /// kill -9.
    Restart,
    /// Power loss; so many of the unsynced batches are found again.
    PowerCut(usize),
}

fn steps() -> impl Strategy<Value = Step> {
    let (session, file) = (0..2usize, 0..4usize);
    prop_oneof![
        4 => (session.clone(), file.clone()).prop_map(|(session, file)| Step::Create(session, file)),
        2 => (session.clone(), file.clone()).prop_map(|(session, file)| Step::Unlink(session, file)),
        3 => (session.clone(), file.clone(), file.clone()).prop_map(|(session, from, to)| Step::Rename(session, from, to)),
        3 => (session, file, any::<u8>()).prop_map(|(session, file, byte)| Step::Write(session, file, byte)),
        1 => Just(Step::Sync),
        1 => Just(Step::Restart),
        1 => (0..6usize).prop_map(Step::PowerCut),
    ]
}

const FILES: [&str; 4] = ["a", "b", "c", "d"];

/// Names, the inodes they point at, and the content: all that users can tell.
fn state(executor: &Executor) -> BTreeMap<String, (InodeId, UnixNanos, Bytes)> {
    let records: BTreeMap<Key, Record> = executor.all_records().unwrap().into_iter().collect();
    let dentries = records.iter().filter_map(|(key, record)| match (key, record) {
        (Key::Dentry(_, name), Record::Dentry(dentry)) => Some((name.to_string(), dentry.inode)),
        _ => None,
    });
    let with_content = |(name, id): (String, InodeId)| {
        let Some(Record::Inode(inode)) = records.get(&Key::Inode(id)) else { panic!("a name without an inode") };
        let content = match records.get(&Key::Inline(id)) {
            Some(Record::Inline(inline)) => inline.content.clone(),
            _ => Bytes::new(),
        };
        (name, (id, inode.ctime, content))
    };
    dentries.map(with_content).collect()
}

fn check_nothing_acknowledged_is_lost(steps: &[Step]) {
    let mut bench = Bench::new();
    let sessions = [bench.session(1), bench.session(2)];
    let mut next_number = 1;
    // Per session: calls whose replies were seen and are not known to be durable.
    let mut kept: [Vec<(Call, Answered)>; 2] = Default::default();
    for step in steps {
        let (session, request) = match step {
            Step::Create(session, file) => (*session, create(FILES[*file], false)),
            Step::Unlink(session, file) => (*session, unlink(FILES[*file])),
            Step::Rename(session, from, to) => {
                let request = crate::core::request::Rename {
                    parent: InodeId::ROOT,
                    name: name(FILES[*from]),
                    new_parent: InodeId::ROOT,
                    new_name: name(FILES[*to]),
                    flags: 0,
                };
                (*session, Request::Rename(request))
            }
            Step::Write(session, file, byte) => {
                let Ok(found) = ask(&bench.executor, sessions[*session], lookup(FILES[*file])).result else { continue };
                let Body::Entry { inode, .. } = found.body else { panic!("unexpected {found:?}") };
                let request = CommitWrite {
                    inode: inode.id,
                    content: Some(vec![*byte; 3].into()),
                    if_data_version: inode.data_version,
                    ..CommitWrite::default()
                };
                (*session, Request::CommitWrite(request))
            }
            Step::Sync => {
                bench.executor.wait_durable(Seq(0)).unwrap();
                let durable = bench.executor.seqs().1;
                for kept in &mut kept {
                    kept.retain(|(_, answered)| answered.result.as_ref().is_ok_and(|reply| reply.seq > durable));
                }
                continue;
            }
            Step::Restart | Step::PowerCut(_) => {
                let before = state(&bench.executor);
                match step {
                    Step::PowerCut(batches) => bench.power_cut(*batches),
                    _ => bench.restart(),
                }
                for (session, kept) in sessions.iter().zip(&mut kept) {
                    let reclaim = |is_last| Request::SessionReclaim { opens: Vec::new(), is_last };
                    ask(&bench.executor, *session, reclaim(false)).result.unwrap();
                    for (call, answered) in kept.iter_mut() {
                        let replayed = bench.executor.call(replay_of(call, answered));
                        assert!(replayed.result.is_ok(), "{call:?}: {replayed:?}");
                        answered.result = replayed.result;
                    }
                    ask(&bench.executor, *session, reclaim(true)).result.unwrap();
                }
                assert_eq!(state(&bench.executor), before, "after {step:?}");
                assert_eq!(bench.executor.recount().unwrap(), bench.executor.counters());
                continue;
            }
        };
        let call = numbered(sessions[session], next_number, request);
        next_number += 1;
        let answered = bench.executor.call(call.clone());
        if answered.result.as_ref().is_ok_and(|reply| reply.seq.0 > 0) {
            kept[session].push((call, answered));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn nothing_acknowledged_is_lost_or_done_twice_while_its_mount_lives(
        steps in proptest::collection::vec(steps(), 1..50),
    ) {
        check_nothing_acknowledged_is_lost(&steps);
    }
}
