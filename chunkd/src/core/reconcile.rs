//! Comparing the unit tables of a chunk's replicas: what must be copied from where so that all are equal.
//!
//! For each unit the largest stamp wins; a unit that is missing in a table was never written there. Equal stamps stand for
//! equal bytes, so a unit that has the same stamp but another checksum somewhere is a doubt, which only the data itself can
//! settle.
//!
//! A unit that is lost gives way to a good one with the same stamp, not to an older one: that would mix two writes. The plan
//! has it copied, which fails if it is damaged still; whoever carries the plan out settles what comes of it. What is lost
//! everywhere stays so. A unit that is lost with its entry has no stamp.

use super::unit::UnitState;

/// Units that are copied with one message: 1 MiB.
pub const COPY_UNITS_MAX: u32 = 256;

/// One replica's units, ascending; without those that were never written. Damaged ones are lost, as far as is known.
pub type Table = Vec<(u32, UnitState)>;

/// Units to be copied. Members are counted from 0, the primary's own replica being 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    /// The other side: the source of a pull, the target of a push.
    pub member: usize,
    /// The first unit.
    pub first: u32,
    /// How many, at most [`COPY_UNITS_MAX`].
    pub count: u32,
}

/// What makes all replicas equal, in this order: settle the doubts, pull what may be lost, pull, push.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Units with equal stamps and different content, with the members that have that stamp.
    pub doubts: Vec<(u32, Vec<usize>)>,
    /// Units that the primary fetches from a member, although they seem to be lost there.
    pub lost: Vec<Copy>,
    /// Units that the primary fetches from a member.
    pub pulls: Vec<Copy>,
    /// Units that the primary then sends to a member.
    pub pushes: Vec<Copy>,
    /// The highest seq in any table.
    pub highest_seq: u64,
}

/// Compares `tables`, the primary's first.
pub fn plan(tables: &[Table]) -> Plan {
    let mut plan = Plan::default();
    let mut at = vec![0; tables.len()];
    let mut states = vec![None; tables.len()];
    loop {
        let unit = tables.iter().zip(&at).filter_map(|(table, at)| table.get(*at)).map(|(unit, _)| *unit).min();
        let Some(unit) = unit else { return plan };
        for (member, table) in tables.iter().enumerate() {
            states[member] = table.get(at[member]).filter(|(number, _)| *number == unit).map(|(_, state)| *state);
            at[member] += usize::from(states[member].is_some());
        }
        plan_unit(&mut plan, unit, &states);
    }
}

fn plan_unit(plan: &mut Plan, unit: u32, states: &[Option<UnitState>]) {
    let highest = states.iter().flatten().map(|state| state.stamp.seq).max();
    plan.highest_seq = plan.highest_seq.max(highest.unwrap_or(0));
    let with_entry = states.iter().flatten().copied().filter(|state| *state != UnitState::lost_entry());
    let Some(winner) = with_entry.max_by_key(|state| (state.stamp, !state.is_lost())) else { return };
    if states.iter().all(|state| state.is_some_and(|state| state.is_lost())) {
        return;
    }
    let alike = |state: UnitState| state.stamp == winner.stamp && state.is_lost() == winner.is_lost();
    let holds = |state: &Option<UnitState>| state.is_some_and(alike);
    let holders = || states.iter().enumerate().filter(|(_, state)| holds(state)).map(|(member, _)| member);
    if holders().any(|member| states[member] != Some(winner)) {
        plan.doubts.push((unit, holders().collect()));
        return;
    }
    if states[0] != Some(winner) {
        let source = holders().next().expect("the winner is held by someone");
        add(if winner.is_lost() { &mut plan.lost } else { &mut plan.pulls }, source, unit);
    }
    for (member, state) in states.iter().enumerate().skip(1) {
        if *state != Some(winner) {
            add(&mut plan.pushes, member, unit);
        }
    }
}

fn add(copies: &mut Vec<Copy>, member: usize, unit: u32) {
    // Runs of different members grow side by side, so the last one of this member is near the end.
    let last = copies.iter_mut().rev().take(8).find(|copy| copy.member == member);
    match last {
        Some(copy) if copy.first + copy.count == unit && copy.count < COPY_UNITS_MAX => copy.count += 1,
        _ => copies.push(Copy { member, first: unit, count: 1 }),
    }
}

#[cfg(test)]
mod tests {
    use dfs_proto::Version;
    use proptest::prelude::*;

    use super::super::unit::WriteStamp;
    use super::*;

    /// Reads `unit:version.seq=crc` words; a crc of 0 is a tombstone, and a unit with a `-` before it is lost.
    fn table(text: &str) -> Table {
        let number = |text: &str| text.parse::<u64>().expect("a number");
        text.split_whitespace()
            .map(|word| {
                let (is_lost, word) = word.strip_prefix('-').map_or((false, word), |word| (true, word));
                let (unit, rest) = word.split_once(':').expect("unit:");
                let (stamp, crc) = rest.split_once('=').expect("=crc");
                let (version, seq) = stamp.split_once('.').expect("version.seq");
                let stamp = WriteStamp { version: Version(number(version)), seq: number(seq) };
                let crc = number(crc) as u32;
                let state = if crc == 0 { UnitState::tombstone(stamp) } else { UnitState::data(stamp, crc) };
                (number(unit) as u32, if is_lost { state.damaged() } else { state })
            })
            .collect()
    }

    fn check(tables: &[&str], expected: &str) {
        let plan = plan(&tables.iter().map(|text| table(text)).collect::<Vec<_>>());
        let copies = |word: &str, copies: &[Copy]| {
            copies
                .iter()
                .map(|copy| format!("{word} {} {}+{}", copy.member, copy.first, copy.count))
                .collect::<Vec<_>>()
        };
        let mut lines: Vec<String> = plan.doubts.iter().map(|(unit, who)| format!("doubt {unit} {who:?}")).collect();
        lines.extend(copies("lost", &plan.lost));
        lines.extend(copies("pull", &plan.pulls));
        lines.extend(copies("push", &plan.pushes));
        lines.push(format!("seq {}", plan.highest_seq));
        assert_eq!(lines.join("; "), expected);
    }

    #[test]
    fn equal_tables_need_nothing() {
        check(&["", "", ""], "seq 0");
        check(&["0:1.5=7 9:1.6=0", "0:1.5=7 9:1.6=0"], "seq 6");
    }

    #[test]
    fn the_larger_stamp_wins_and_the_version_counts_before_the_seq() {
        check(&["0:1.5=7", "0:1.4=6", "0:1.5=7"], "push 1 0+1; seq 5");
        check(&["0:1.4=6", "0:1.5=7", "0:1.4=6"], "pull 1 0+1; push 2 0+1; seq 5");
        check(&["0:1.9=6", "0:2.3=7"], "pull 1 0+1; seq 9");
    }

    #[test]
    fn a_tombstone_wins_over_older_data_and_an_absent_unit_over_nothing() {
        check(&["3:1.9=0", "3:1.5=7", ""], "push 1 3+1; push 2 3+1; seq 9");
        check(&["", "3:1.5=7", ""], "pull 1 3+1; push 2 3+1; seq 5");
    }

    #[test]
    fn neighbours_are_copied_together() {
        check(&["", "1:1.1=1 2:1.1=2 3:1.1=3 5:1.2=5", ""], "pull 1 1+3; pull 1 5+1; push 2 1+3; push 2 5+1; seq 2");
    }

    #[test]
    fn equal_stamps_with_different_content_are_a_doubt() {
        check(&["0:1.5=7", "0:1.5=8", "0:1.4=1"], "doubt 0 [0, 1]; seq 5");
    }

    #[test]
    fn what_is_lost_is_taken_from_whoever_has_it_and_never_from_an_older_replica() {
        check(&["-0:1.5=7 1:1.5=8", "0:1.5=7 1:1.5=8"], "pull 1 0+1; seq 5");
        check(&["0:1.5=7", "-0:1.5=7", "-0:1.4=6"], "push 1 0+1; push 2 0+1; seq 5");
        check(&["-0:1.5=7 1:1.5=8", "0:1.4=6 1:1.4=6"], "push 1 0+2; seq 5");
        check(&["0:1.4=6 1:1.4=6", "0:1.5=7 -1:1.5=8"], "lost 1 1+1; pull 1 0+1; seq 5");
        check(&["", "-0:1.5=0"], "lost 1 0+1; seq 5");
    }

    #[test]
    fn what_is_lost_everywhere_or_with_its_entry_stays_as_it_is() {
        check(&["-0:1.5=7", "-0:1.5=7"], "seq 5");
        check(&["-0:1.5=7", "-0:1.4=6"], "seq 5");
        let lost: Table = vec![(0, UnitState::lost_entry())];
        assert_eq!(plan(&[lost.clone(), Table::new()]), Plan { highest_seq: 1, ..Plan::default() });
        let heal = plan(&[lost, table("0:1.3=7")]);
        assert_eq!(heal.pulls, [Copy { member: 1, first: 0, count: 1 }]);
    }

    proptest! {
        #[test]
        fn carrying_a_plan_out_makes_all_equal_to_the_newest(
            units in proptest::collection::vec(proptest::collection::vec((0u64..3, 0u64..4), 3), 0..20)
        ) {
            let mut tables: Vec<Table> = vec![Vec::new(); 3];
            for (unit, members) in units.iter().enumerate() {
                for (table, (version, seq)) in tables.iter_mut().zip(members) {
                    if *seq > 0 {
                        let stamp = WriteStamp { version: Version(*version), seq: *seq };
                        table.push((unit as u32, UnitState::data(stamp, (version * 10 + seq) as u32)));
                    }
                }
            }
            let plan = plan(&tables);
            prop_assert!(plan.doubts.is_empty());
            let mut maps: Vec<std::collections::BTreeMap<u32, UnitState>> =
                tables.iter().map(|table| table.iter().copied().collect()).collect();
            let best: std::collections::BTreeMap<u32, UnitState> = maps.iter().flatten().fold(
                std::collections::BTreeMap::new(),
                |mut best, (unit, state)| {
                    let entry = best.entry(*unit).or_insert(*state);
                    if state.stamp > entry.stamp { *entry = *state; }
                    best
                },
            );
            for copy in &plan.pulls {
                for unit in copy.first..copy.first + copy.count {
                    let state = maps[copy.member][&unit];
                    maps[0].insert(unit, state);
                }
            }
            for copy in &plan.pushes {
                for unit in copy.first..copy.first + copy.count {
                    let state = maps[0][&unit];
                    maps[copy.member].insert(unit, state);
                }
            }
            for map in &maps {
                prop_assert_eq!(map, &best);
            }
        }
    }
}
