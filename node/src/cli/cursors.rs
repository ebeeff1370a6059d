//! `drover cursors`: how far consumer groups have read.

use clap::Subcommand;
use drover_proto::admin::{
    CommitCursorRequest, Cursor, DeleteCursorRequest, ListCursorsRequest, SeekCursorRequest,
};
use serde_json::{Value, json};

use super::Failure;
use super::client::HubArguments;
use super::output::{Form, Output, Table};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Show the cursors of a group.
    List { group: String },
    /// Move a cursor forward: everything before the offset was processed.
    Commit(Place),
    /// Move a cursor anywhere.
    Seek(Place),
    /// Forget a cursor: the group begins anew at this shard.
    Delete {
        group: String,
        #[arg(long, value_name = "NUMBER")]
        shard: u32,
    },
}

#[derive(Debug, clap::Args)]
pub(super) struct Place {
    group: String,
    #[arg(long, value_name = "NUMBER")]
    shard: u32,
    /// The offset of the first message that the group has not processed.
    #[arg(long, value_name = "OFFSET")]
    next_offset: u64,
}

pub(super) async fn call(
    command: Command,
    connection: &HubArguments,
    out: &mut Output<'_>,
) -> Result<(), Failure> {
    let client = connection.client()?;
    let mut messages = client.messages();
    match command {
        Command::List { group } => {
            let request = client.request(ListCursorsRequest { consumer_group: group });
            let cursors = messages.list_cursors(request).await?.into_inner().cursors;
            print(&cursors, out)
        }
        Command::Commit(Place { group, shard, next_offset }) => {
            let request = CommitCursorRequest { shard, consumer_group: group, next_offset };
            let cursor = messages.commit_cursor(client.request(request)).await?;
            print(&[cursor.into_inner()], out)
        }
        Command::Seek(Place { group, shard, next_offset }) => {
            let request = SeekCursorRequest { shard, consumer_group: group, next_offset };
            let cursor = messages.seek_cursor(client.request(request)).await?;
            print(&[cursor.into_inner()], out)
        }
        Command::Delete { group, shard } => {
            let request = client.request(DeleteCursorRequest { shard, consumer_group: group });
            messages.delete_cursor(request).await?;
            Ok(())
        }
    }
}

fn print(cursors: &[Cursor], out: &mut Output<'_>) -> Result<(), Failure> {
    if out.form() == Form::Json {
        return cursors.iter().try_for_each(|cursor| out.json(&cursor_json(cursor)));
    }
    let mut table = Table::new(&["SHARD", "GROUP", "NEXT OFFSET"]);
    for cursor in cursors {
        let (shard, next) = (cursor.shard.to_string(), cursor.next_offset.to_string());
        table.row([&shard, &cursor.consumer_group, &next]);
    }
    out.table(&table)
}

fn cursor_json(cursor: &Cursor) -> Value {
    json!({
        "shard": cursor.shard,
        "consumerGroup": cursor.consumer_group,
        "nextOffset": cursor.next_offset,
    })
}
