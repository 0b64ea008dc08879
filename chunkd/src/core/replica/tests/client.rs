//! What clients want, how they ask for it, again and again, and what they note of it.

use bytes::{Bytes, BytesMut};
use dfs_proto::limits::UNIT_SIZE;
use dfs_proto::unit::checksums;
use dfs_proto::{FsError, Version};

use super::super::super::message::{ClientRequest, Reply, Request, Sealed};
use super::history::{Kind, Operation};
use super::world::{CALL_MS, Event, HALF, HALVES, Origin, UNITS, World};

const OPERATION_MS: u64 = 15_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    Write { first: u32, count: u32 },
    WriteHalf { unit: u32, half: u32 },
    Zero { first: u32, count: u32 },
    Read { first: u32, count: u32 },
    Barrier,
}

#[derive(Debug, Default)]
pub struct Client {
    /// What it was told last; right as a rule.
    pub located: Option<Sealed>,
    pub wish: Option<(Wish, u64)>,
    pub number: u64,
    pub attempt: u64,
    pub started: u64,
    pub left: u32,
}

impl World {
    pub(super) fn retry(&mut self, client: usize, attempt: u64) {
        if self.clients[client].attempt != attempt {
            return;
        }
        let now = self.now;
        if let Some((wish, value)) = self.clients[client].wish
            && now > self.clients[client].started + OPERATION_MS
        {
            // Nobody knows.
            self.record(client, wish, value, u64::MAX, None);
            self.clients[client].wish = None;
        }
        if self.clients[client].wish.is_some() {
            // No answer came: it may be somewhere else now, or the message was lost.
            if self.random.chance(500) {
                self.clients[client].located = None;
            }
        } else {
            if self.clients[client].left == 0 {
                return;
            }
            self.clients[client].left -= 1;
            let wish = self.wish();
            self.value += 1;
            let value = if matches!(wish, Wish::Zero { .. }) { 0 } else { self.value };
            let client = &mut self.clients[client];
            client.wish = Some((wish, value));
            client.number += 1;
            client.started = now;
        }
        self.ask(client);
    }

    fn wish(&mut self) -> Wish {
        let unit = self.random.below(u64::from(UNITS)) as u32;
        let count = 1 + self.random.below(u64::from(UNITS - unit)) as u32;
        let half = self.random.below(u64::from(HALVES)) as u32;
        match self.random.below(20) {
            0..=5 => Wish::Write { first: unit, count },
            6..=8 => Wish::WriteHalf { unit, half },
            9 => Wish::Zero { first: unit * HALVES + half, count: 1 + self.random.below(2) as u32 },
            10 => Wish::Barrier,
            _ => Wish::Read { first: unit, count },
        }
    }

    pub(super) fn ask(&mut self, at: usize) {
        let client = &mut self.clients[at];
        client.attempt += 1;
        let (attempt, number) = (client.attempt, client.number);
        let Some((wish, value)) = client.wish else { return };
        let request = request(wish, value, at as u64 + 1, number);
        self.at(CALL_MS + 500, Event::Retry { client: at, attempt });
        if self.clients[at].located.is_none() || self.random.chance(100) {
            self.clients[at].located = Some(self.master.grant());
        }
        let Some(grant) = self.clients[at].located.clone() else { return };
        let node = grant.grant.primary;
        if !self.random.chance(self.faults.drop) {
            let origin = Origin::Client { client: at, attempt };
            let request = Request::Client { grant, request };
            let delay = self.delay();
            self.at(delay, Event::Begin { node, boot: None, origin, request, wait: CALL_MS });
        }
    }

    pub(super) fn replied(&mut self, client: usize, attempt: u64, result: Result<Reply, FsError>) {
        if self.clients[client].attempt != attempt {
            return;
        }
        let Some((wish, value)) = self.clients[client].wish else { return };
        match result {
            Ok(reply) => {
                let now = self.now;
                self.record(client, wish, value, now, Some(&reply));
                self.clients[client].wish = None;
                self.done += 1;
            }
            // It may have been applied all the same, and is not asked for again.
            Err(FsError::NoSpace) => {
                self.record(client, wish, value, u64::MAX, None);
                self.clients[client].wish = None;
            }
            Err(_) => self.clients[client].located = None,
        }
        // In bursts, so that something is under way whenever something goes wrong.
        let wait = if self.random.chance(700) { 1 + self.random.below(60) } else { self.random.below(4_000) };
        self.clients[client].attempt += 1;
        let attempt = self.clients[client].attempt;
        self.at(wait, Event::Retry { client, attempt });
    }

    pub(super) fn record(&mut self, client: usize, wish: Wish, value: u64, end: u64, reply: Option<&Reply>) {
        let start = self.clients[client].started;
        let mut note = |register, kind| {
            self.history.entry(register).or_default().push(Operation { start, end, kind });
        };
        match wish {
            Wish::Write { first, count } => {
                for unit in first..first + count {
                    (0..HALVES).for_each(|half| note((unit, half), Kind::Write(value)));
                }
            }
            Wish::WriteHalf { unit, half } => note((unit, half), Kind::Write(value)),
            Wish::Zero { first, count } => {
                (first..first + count).for_each(|at| note((at / HALVES, at % HALVES), Kind::Write(0)));
            }
            Wish::Read { first, count } => {
                let Some(Reply::Data { data, .. }) = reply else { return };
                for at in first * HALVES..(first + count) * HALVES {
                    let start = ((at - first * HALVES) * HALF) as usize;
                    let read = data
                        .get(start..start + 8)
                        .map_or(0, |bytes| u64::from_le_bytes(bytes.try_into().expect("8 bytes")));
                    note((at / HALVES, at % HALVES), Kind::Read(read));
                }
            }
            Wish::Barrier => {}
        }
    }
}

fn request(wish: Wish, value: u64, client: u64, number: u64) -> ClientRequest {
    let bytes = |halves: u32| {
        let mut data = BytesMut::zeroed((halves * HALF) as usize);
        for half in data.chunks_exact_mut(HALF as usize) {
            half[..8].copy_from_slice(&value.to_le_bytes());
        }
        data.freeze()
    };
    let write = |offset: u32, data: Bytes| {
        let crcs = checksums(offset, &data);
        ClientRequest::Write { offset, crcs, data, client, number }
    };
    match wish {
        Wish::Write { first, count } => write(first * UNIT_SIZE, bytes(count * HALVES)),
        Wish::WriteHalf { unit, half } => write(unit * UNIT_SIZE + half * HALF, bytes(1)),
        Wish::Zero { first, count } => {
            ClientRequest::Zero { offset: first * HALF, length: count * HALF, client, number }
        }
        Wish::Read { first, count } => ClientRequest::Read { offset: first * UNIT_SIZE, length: count * UNIT_SIZE },
        Wish::Barrier => ClientRequest::Barrier { since: Version(0) },
    }
}
