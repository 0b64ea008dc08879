use bytes::Bytes;
use dfs_proto::ChunkIndex;

use super::*;
use crate::core::Replica;

const SOFT: Policy = Policy::Soft { ms: 60_000 };

fn at(version: u64, primary: u32) -> Arc<Location> {
    located(version, primary, true)
}

fn located(version: u64, primary: u32, is_alive: bool) -> Arc<Location> {
    let address = format!("n{primary}:1").into();
    Arc::new(Location {
        index: ChunkIndex(0),
        chunk: ChunkId(7),
        version: Version(version),
        replicas: vec![Replica { node: NodeId(primary), address, is_alive }],
        grant: Bytes::new(),
    })
}

/// A call in its conversation, with a clock.
struct Talk {
    call: ChunkCall,
    now: MonoMs,
    step: Step,
}

impl Talk {
    fn begin(policy: Policy, known: Option<Arc<Location>>) -> Self {
        let now = MonoMs(1_000);
        let mut call = ChunkCall::new(policy, now);
        let step = call.step(now, Input::Begin(known));
        Self { call, now, step }
    }

    fn tell(&mut self, input: Input) -> &Step {
        self.step = self.call.step(self.now, input);
        &self.step
    }

    fn answered(&mut self, trouble: impl Into<Trouble>) -> &Step {
        assert!(matches!(self.step, Step::Ask(_)), "{:?}", self.step);
        self.tell(Input::Answered(Err(trouble.into())))
    }

    fn silence(&mut self) -> &Step {
        let Step::Ask(ask) = &self.step else { panic!("{:?}", self.step) };
        self.now = ask.until;
        self.answered(Trouble::Unanswered("silence".into()))
    }

    fn found(&mut self, location: Arc<Location>) -> &Step {
        assert!(matches!(self.step, Step::LookUp(_)), "{:?}", self.step);
        self.tell(Input::Found(Ok(Some(location))))
    }

    /// Lets the pause pass that it wants; returns how long that was.
    fn pass(&mut self) -> u64 {
        let Step::Wait { until } = self.step else { panic!("{:?}", self.step) };
        let pause = until.since(self.now);
        self.now = until;
        self.tell(Input::Passed);
        pause
    }

    fn asks(&self) -> (u64, u32) {
        let Step::Ask(ask) = &self.step else { panic!("{:?}", self.step) };
        (ask.location.version.0, ask.location.primary().expect("there is one").node.0)
    }

    fn looks(&self) -> &LookUp {
        let Step::LookUp(look) = &self.step else { panic!("{:?}", self.step) };
        look
    }

    fn error(&self) -> &FsError {
        let Step::Done(Err(error)) = &self.step else { panic!("{:?}", self.step) };
        error
    }
}

fn gone() -> Trouble {
    Trouble::Unanswered("connection refused".into())
}

#[test]
fn a_known_primary_is_asked_without_a_look_up() {
    let mut talk = Talk::begin(SOFT, Some(at(1, 1)));
    assert_eq!(talk.asks(), (1, 1));
    assert_eq!(talk.tell(Input::Answered(Ok(()))), &Step::Done(Ok(Outcome::Answered)));
}

#[test]
fn no_chunk_is_a_result() {
    let mut talk = Talk::begin(SOFT, None);
    assert_eq!(talk.looks().instead_of, None);
    assert_eq!(talk.tell(Input::Found(Ok(None))), &Step::Done(Ok(Outcome::NoChunk)));
}

#[test]
fn a_stale_location_is_looked_up_and_asked_at_once_but_not_for_ever() {
    let mut talk = Talk::begin(SOFT, Some(at(1, 1)));
    for version in 2..10 {
        talk.answered(FsError::Stale("moved"));
        assert_eq!(talk.looks().lost, None);
        talk.found(at(version, 1));
        assert_eq!(talk.asks(), (version, 1));
    }
    talk.answered(FsError::Stale("moved"));
    assert_eq!(talk.pass(), 10);
    talk.looks();
}

#[test]
fn a_lost_primary_is_named_to_the_master_and_the_new_one_asked_at_once() {
    let mut talk = Talk::begin(SOFT, Some(at(1, 1)));
    talk.answered(gone());
    assert_eq!((talk.looks().lost, talk.looks().instead_of.as_deref()), (Some(NodeId(1)), Some(&*at(1, 1))));
    talk.found(at(2, 3));
    assert_eq!(talk.asks(), (2, 3));
}

#[test]
fn while_the_master_has_no_other_primary_pauses_grow_and_the_old_one_is_asked_again() {
    let mut talk = Talk::begin(SOFT, Some(at(1, 1)));
    for pause in [10, 20, 40, 80, 160, 320, 500, 500] {
        talk.answered(gone());
        talk.found(at(1, 1));
        assert_eq!(talk.pass(), pause);
        assert_eq!(talk.looks().lost, Some(NodeId(1)));
        talk.found(at(1, 1));
        assert_eq!(talk.asks(), (1, 1), "it may have been started again");
    }
}

#[test]
fn a_primary_that_the_master_takes_for_dead_is_not_hammered() {
    let mut talk = Talk::begin(Policy::Hard, None);
    let mut asked = 0;
    talk.found(located(1, 1, false));
    for _ in 0..12 {
        match talk.step {
            Step::Ask(_) => {
                asked += 1;
                talk.answered(gone());
                talk.found(located(1, 1, false));
            }
            _ => {
                talk.pass();
                assert_eq!(talk.looks().lost, Some(NodeId(1)));
                talk.found(located(1, 1, false));
            }
        }
    }
    assert_eq!(asked, 3);
    talk.pass();
    talk.found(at(2, 2));
    assert_eq!(talk.asks(), (2, 2));
}

#[test]
fn a_server_that_cannot_now_is_asked_again_and_the_location_looked_up_every_second_time() {
    let mut talk = Talk::begin(SOFT, Some(at(1, 1)));
    talk.answered(FsError::TryAgain("fewer replicas"));
    assert_eq!(talk.pass(), 10);
    assert_eq!(talk.asks(), (1, 1));
    talk.answered(FsError::TryAgain("fewer replicas"));
    assert_eq!(talk.pass(), 20);
    assert_eq!(talk.looks().lost, None, "it answers");
    talk.found(at(1, 1));
    assert_eq!(talk.asks(), (1, 1));
}

#[test]
fn damage_is_reported_once_and_final_if_the_same_replica_set_says_it_again() {
    let mut talk = Talk::begin(SOFT, Some(at(1, 1)));
    talk.answered(FsError::Corrupt("unit 3".into()));
    let damage = talk.looks().damage.clone().expect("reported");
    assert_eq!((damage.version, damage.node), (Version(1), NodeId(1)));
    talk.found(at(2, 2));
    talk.answered(FsError::Corrupt("unit 3".into()));
    assert_eq!(talk.looks().damage.as_ref().expect("another one").version, Version(2));
    talk.found(at(2, 2));
    talk.pass();
    assert_eq!(talk.looks().damage, None);
    talk.found(at(2, 2));
    talk.answered(FsError::Corrupt("unit 3".into()));
    assert_eq!(talk.error(), &FsError::Corrupt("unit 3".into()));
}

#[test]
fn what_no_repetition_changes_is_final() {
    for said in [FsError::NoSpace, FsError::Io("disk".into()), FsError::SessionLost] {
        let mut talk = Talk::begin(SOFT, Some(at(1, 1)));
        talk.answered(said.clone());
        assert_eq!(talk.error(), &said);
    }
    let mut talk = Talk::begin(SOFT, None);
    talk.tell(Input::Found(Err(FsError::NoEntry)));
    assert_eq!(talk.error(), &FsError::NoEntry);
}

#[test]
fn an_attempt_is_left_after_five_seconds_and_doubted_after_one() {
    let talk = Talk::begin(SOFT, Some(at(1, 1)));
    let Step::Ask(ask) = &talk.step else { panic!("{:?}", talk.step) };
    assert_eq!((ask.check_at.since(talk.now), ask.until.since(talk.now)), (1_000, 5_000));
}

#[test]
fn a_server_that_is_slow_gets_more_time_each_time() {
    let mut talk = Talk::begin(Policy::Hard, Some(at(1, 1)));
    let mut attempts = Vec::new();
    for _ in 0..4 {
        let Step::Ask(ask) = &talk.step else { panic!("{:?}", talk.step) };
        attempts.push(ask.until.since(talk.now));
        talk.silence();
        talk.found(at(1, 1));
        talk.pass();
        talk.found(at(1, 1));
    }
    assert_eq!(attempts, [5_000, 10_000, 20_000, 20_000]);
    talk.answered(gone());
    talk.found(at(2, 2));
    assert_eq!(talk.asks(), (2, 2));
}

#[test]
fn a_soft_call_ends_at_its_deadline_whatever_it_waits_for() {
    let troubles: [fn() -> Trouble; 6] = [
        gone,
        || FsError::TryAgain("not now").into(),
        || FsError::Stale("moved").into(),
        || FsError::UnknownSession.into(),
        || FsError::NoReplica("two are away".into()).into(),
        || FsError::TimedOut("peer").into(),
    ];
    for trouble in troubles {
        let mut talk = Talk::begin(Policy::Soft { ms: 7_000 }, Some(at(1, 1)));
        let deadline = talk.now.plus(7_000);
        while !matches!(talk.step, Step::Done(_)) {
            match &talk.step {
                Step::Ask(ask) => {
                    assert!(ask.until <= deadline && ask.check_at <= deadline);
                    talk.now = talk.now.plus(900).min(ask.until);
                    talk.answered(trouble());
                }
                Step::LookUp(look) => {
                    assert_eq!(look.until, Some(deadline));
                    talk.found(at(1, 1));
                }
                Step::Wait { until } => {
                    assert!(*until <= deadline);
                    talk.pass();
                }
                Step::Done(_) => {}
            }
        }
        assert_eq!(talk.now, deadline);
        assert_eq!(talk.error().errno(), libc::EIO, "{:?}", talk.error());
    }
}

#[test]
fn silence_alone_uses_up_a_soft_deadline_in_whole_attempts() {
    let mut talk = Talk::begin(Policy::Soft { ms: 8_000 }, Some(at(1, 1)));
    talk.silence();
    talk.found(at(1, 1));
    talk.pass();
    talk.found(at(1, 1));
    talk.silence();
    assert_eq!(talk.now.since(MonoMs(1_000)), 8_000);
    assert_eq!(talk.error().errno(), libc::EIO);
}

#[test]
fn a_hard_call_never_gives_up() {
    let mut talk = Talk::begin(Policy::Hard, Some(at(1, 1)));
    for _ in 0..10_000 {
        talk.silence();
        assert_eq!(talk.looks().until, None);
        talk.found(at(1, 1));
        talk.pass();
        talk.found(at(1, 1));
    }
    talk.tell(Input::Answered(Ok(())));
    assert_eq!(talk.step, Step::Done(Ok(Outcome::Answered)));
}

#[test]
fn a_master_that_finds_no_server_is_asked_again() {
    let mut talk = Talk::begin(SOFT, None);
    talk.tell(Input::Found(Err(FsError::NoReplica("too few servers".into()))));
    assert_eq!(talk.pass(), 10);
    talk.found(at(1, 1));
    assert_eq!(talk.asks(), (1, 1));
}
