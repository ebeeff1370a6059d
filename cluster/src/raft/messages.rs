//! Raft's messages to other nodes as protobuf, and back.
//!
//! What arrives was written by an authenticated peer, but it may be damaged or malicious all the same: nothing here
//! panics, and numbers that openraft would overflow on are refused (security test S-43).

use drover_proto::cluster as proto;
use drover_proto::record;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, TransferLeaderError, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};

use super::types::{
    self, Entry, Invalid, LogId, TypeConfig, Vote, payload_from_record, payload_to_record,
    vote_from_record, vote_to_record,
};

/// Terms and indexes beyond this are refused: openraft adds to them, and no cluster gets there.
const NUMBER_MAX: u64 = u64::MAX >> 1;

pub(super) fn append_to_proto(request: AppendEntriesRequest<TypeConfig>) -> proto::AppendEntries {
    proto::AppendEntries {
        vote: Some(vote_to_record(&request.vote)),
        prev_log_id: request.prev_log_id.as_ref().map(types::log_id_to_record),
        entries: request.entries.iter().map(entry_to_record).collect(),
        leader_commit: request.leader_commit.as_ref().map(types::log_id_to_record),
    }
}

pub(super) fn append_from_proto(
    message: proto::AppendEntries,
) -> Result<AppendEntriesRequest<TypeConfig>, Invalid> {
    let prev_log_id = optional_log_id(message.prev_log_id)?;
    let first = prev_log_id.map_or(0, |id| id.index + 1);
    let entries = (first..)
        .zip(message.entries)
        .map(|(index, entry)| entry_from_record(index, entry))
        .collect::<Result<_, _>>()?;
    Ok(AppendEntriesRequest {
        vote: required_vote(message.vote)?,
        prev_log_id,
        entries,
        leader_commit: optional_log_id(message.leader_commit)?,
    })
}

fn entry_to_record(entry: &Entry) -> record::LogEntry {
    record::LogEntry {
        term: types::log_id_to_record(&entry.log_id).term,
        payload: Some(payload_to_record(&entry.payload)),
    }
}

fn entry_from_record(index: u64, record: record::LogEntry) -> Result<Entry, Invalid> {
    let payload = record.payload.ok_or(Invalid { problem: "an entry without a payload" })?;
    Ok(Entry {
        log_id: checked_log_id(record::LogId { term: record.term, index })?,
        payload: payload_from_record(payload)?,
    })
}

pub(super) fn append_response_to_proto(
    response: &AppendEntriesResponse<TypeConfig>,
) -> proto::AppendEntriesResponse {
    use proto::append_entries_response::Result as Answer;
    let answer = match response {
        AppendEntriesResponse::Success => Answer::Success(true),
        AppendEntriesResponse::PartialSuccess(matching) => {
            let matching = matching.as_ref().map(types::log_id_to_record);
            Answer::Partial(proto::PartialSuccess { matching })
        }
        AppendEntriesResponse::Conflict => Answer::Conflict(true),
        AppendEntriesResponse::HigherVote(vote) => Answer::HigherVote(vote_to_record(vote)),
    };
    proto::AppendEntriesResponse { result: Some(answer) }
}

pub(super) fn append_response_from_proto(
    message: proto::AppendEntriesResponse,
) -> Result<AppendEntriesResponse<TypeConfig>, Invalid> {
    use proto::append_entries_response::Result as Answer;
    Ok(match message.result.ok_or(Invalid { problem: "an empty answer to AppendEntries" })? {
        Answer::Success(_) => AppendEntriesResponse::Success,
        Answer::Partial(partial) => {
            AppendEntriesResponse::PartialSuccess(optional_log_id(partial.matching)?)
        }
        Answer::Conflict(_) => AppendEntriesResponse::Conflict,
        Answer::HigherVote(vote) => AppendEntriesResponse::HigherVote(checked_vote(vote)?),
    })
}

pub(super) fn vote_to_proto(request: &VoteRequest<TypeConfig>) -> proto::Vote {
    proto::Vote {
        vote: Some(vote_to_record(&request.vote)),
        last_log_id: request.last_log_id.as_ref().map(types::log_id_to_record),
        leadership_transfer: request.leadership_transfer,
    }
}

pub(super) fn vote_from_proto(message: proto::Vote) -> Result<VoteRequest<TypeConfig>, Invalid> {
    let vote = required_vote(message.vote)?;
    let mut request = VoteRequest::new(vote, optional_log_id(message.last_log_id)?);
    request.leadership_transfer = message.leadership_transfer;
    Ok(request)
}

pub(super) fn vote_response_to_proto(response: &VoteResponse<TypeConfig>) -> proto::VoteResponse {
    proto::VoteResponse {
        vote: Some(vote_to_record(&response.vote)),
        granted: response.vote_granted,
        last_log_id: response.last_log_id.as_ref().map(types::log_id_to_record),
    }
}

pub(super) fn vote_response_from_proto(
    message: proto::VoteResponse,
) -> Result<VoteResponse<TypeConfig>, Invalid> {
    let vote = required_vote(message.vote)?;
    Ok(VoteResponse::new(vote, optional_log_id(message.last_log_id)?, message.granted))
}

pub(super) fn transfer_to_proto(
    request: &TransferLeaderRequest<TypeConfig>,
) -> proto::TransferLeader {
    proto::TransferLeader {
        from: Some(vote_to_record(request.from_leader())),
        to: request.to_node_id().to_u64(),
        last_log_id: request.last_log_id().map(types::log_id_to_record),
    }
}

pub(super) fn transfer_from_proto(
    message: proto::TransferLeader,
) -> Result<TransferLeaderRequest<TypeConfig>, Invalid> {
    let to = drover_core::ids::ReplicaId::from_u64(message.to);
    let last_log_id = optional_log_id(message.last_log_id)?;
    Ok(TransferLeaderRequest::new(required_vote(message.from)?, to, last_log_id))
}

pub(super) fn transfer_response_to_proto(
    response: &TransferLeaderResponse<TypeConfig>,
) -> proto::TransferLeaderResponse {
    use proto::transfer_leader_response::Result as Answer;
    let log_id = |id: &Option<LogId>| id.as_ref().map(types::log_id_to_record);
    let answer = match response {
        Ok(()) => Answer::Accepted(true),
        Err(TransferLeaderError::VoteChanged { expected, actual }) => {
            let (expected, actual) = (vote_to_record(expected), vote_to_record(actual));
            let (expected, actual) = (Some(expected), Some(actual));
            Answer::VoteChanged(proto::VoteChanged { expected, actual })
        }
        Err(TransferLeaderError::LogNotFlushed { expected, actual }) => {
            let (expected, actual) = (log_id(expected), log_id(actual));
            Answer::LogNotFlushed(proto::LogNotFlushed { expected, actual })
        }
    };
    proto::TransferLeaderResponse { result: Some(answer) }
}

pub(super) fn transfer_response_from_proto(
    message: proto::TransferLeaderResponse,
) -> Result<TransferLeaderResponse<TypeConfig>, Invalid> {
    use proto::transfer_leader_response::Result as Answer;
    Ok(match message.result.ok_or(Invalid { problem: "an empty answer to TransferLeader" })? {
        Answer::Accepted(_) => Ok(()),
        Answer::VoteChanged(changed) => Err(TransferLeaderError::VoteChanged {
            expected: required_vote(changed.expected)?,
            actual: required_vote(changed.actual)?,
        }),
        Answer::LogNotFlushed(behind) => Err(TransferLeaderError::LogNotFlushed {
            expected: optional_log_id(behind.expected)?,
            actual: optional_log_id(behind.actual)?,
        }),
    })
}

pub(super) fn required_vote(vote: Option<record::Vote>) -> Result<Vote, Invalid> {
    checked_vote(vote.ok_or(Invalid { problem: "a message without a vote" })?)
}

pub(super) fn optional_log_id(id: Option<record::LogId>) -> Result<Option<LogId>, Invalid> {
    id.map(checked_log_id).transpose()
}

fn checked_vote(vote: record::Vote) -> Result<Vote, Invalid> {
    if vote.term > NUMBER_MAX {
        return Err(Invalid { problem: "a term that no cluster reaches" });
    }
    Ok(vote_from_record(vote))
}

fn checked_log_id(id: record::LogId) -> Result<LogId, Invalid> {
    if id.term > NUMBER_MAX || id.index > NUMBER_MAX {
        return Err(Invalid { problem: "a log id that no cluster reaches" });
    }
    Ok(types::log_id_from_record(id))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use drover_core::ids::NodeId;

    use super::super::types::{EntryPayload, Proposal, log_id};
    use super::*;

    fn vote(term: u64) -> Vote {
        vote_from_record(record::Vote { term, node: NodeId::new(2, 1).to_u64(), committed: true })
    }

    fn request(prev: Option<LogId>) -> AppendEntriesRequest<TypeConfig> {
        let first = prev.map_or(0, |id| id.index + 1);
        let payload = EntryPayload::Normal(Proposal(Bytes::from_static(b"batch")));
        AppendEntriesRequest {
            vote: vote(4),
            prev_log_id: prev,
            entries: vec![
                Entry { log_id: log_id(3, first), payload: EntryPayload::Blank },
                Entry { log_id: log_id(4, first + 1), payload },
            ],
            leader_commit: Some(log_id(3, 6)),
        }
    }

    #[test]
    fn entries_keep_their_log_ids_from_the_start_and_from_the_middle_of_a_log() {
        for prev in [None, Some(log_id(3, 7))] {
            let sent = request(prev);
            let received = append_from_proto(append_to_proto(sent.clone())).expect("it is valid");
            assert_eq!(received.prev_log_id, sent.prev_log_id);
            assert_eq!(received.entries, sent.entries);
            assert_eq!(received.vote, sent.vote);
            assert_eq!(received.leader_commit, sent.leader_commit);
        }
    }

    #[test]
    fn an_index_at_the_end_of_the_numbers_is_refused() {
        let mut message = append_to_proto(request(None));
        message.prev_log_id = Some(record::LogId { term: 1, index: u64::MAX });
        assert!(append_from_proto(message).is_err());
    }

    #[test]
    fn a_term_at_the_end_of_the_numbers_is_refused() {
        let request = VoteRequest::new(vote(u64::MAX), None);
        assert!(vote_from_proto(vote_to_proto(&request)).is_err());
    }

    #[test]
    fn a_vote_of_a_leadership_transfer_stays_one() {
        let mut request = VoteRequest::new(vote(4), Some(log_id(3, 9)));
        request.leadership_transfer = true;
        assert_eq!(vote_from_proto(vote_to_proto(&request)), Ok(request));
    }

    #[test]
    fn every_answer_survives_the_wire() {
        for answer in [
            AppendEntriesResponse::Success,
            AppendEntriesResponse::PartialSuccess(None),
            AppendEntriesResponse::PartialSuccess(Some(log_id(2, 5))),
            AppendEntriesResponse::Conflict,
            AppendEntriesResponse::HigherVote(vote(9)),
        ] {
            let message = append_response_to_proto(&answer);
            assert_eq!(append_response_from_proto(message), Ok(answer));
        }
        for answer in [
            Ok(()),
            Err(TransferLeaderError::VoteChanged { expected: vote(1), actual: vote(2) }),
            Err(TransferLeaderError::LogNotFlushed { expected: Some(log_id(1, 2)), actual: None }),
        ] {
            let message = transfer_response_to_proto(&answer);
            assert_eq!(transfer_response_from_proto(message), Ok(answer));
        }
    }
}
