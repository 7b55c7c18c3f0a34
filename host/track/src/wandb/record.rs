//! The records of a `.wandb` file, those that we write and read: a part of `wandb_internal.proto`, field numbers and all.

use prost::{Message, Oneof};

/// One record.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Record {
    #[prost(int64, tag = "1")]
    pub(super) num: i64,
    #[prost(oneof = "Kind", tags = "2, 3, 5, 6, 7, 12, 13, 17, 18, 21, 23")]
    pub(super) kind: Option<Kind>,
}

/// What it says.
#[derive(Clone, PartialEq, Oneof)]
pub(super) enum Kind {
    #[prost(message, tag = "2")]
    History(History),
    #[prost(message, tag = "3")]
    Summary(Update),
    #[prost(message, tag = "5")]
    Config(Update),
    #[prost(message, tag = "6")]
    Files(Files),
    #[prost(message, tag = "7")]
    Stats(Stats),
    #[prost(message, tag = "12")]
    Metric(Metric),
    #[prost(message, tag = "13")]
    Output(Output),
    #[prost(message, tag = "17")]
    Run(Box<Run>),
    #[prost(message, tag = "18")]
    Exit(Exit),
    #[prost(message, tag = "21")]
    Header(Header),
    #[prost(message, tag = "23")]
    Preempting(Preempting),
}

/// A key with its value as JSON.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Item {
    #[prost(string, tag = "1")]
    pub(super) key: String,
    #[prost(string, tag = "16")]
    pub(super) value_json: String,
}

/// A row.
#[derive(Clone, PartialEq, Message)]
pub(super) struct History {
    #[prost(message, repeated, tag = "1")]
    pub(super) item: Vec<Item>,
    #[prost(message, optional, tag = "2")]
    pub(super) step: Option<HistoryStep>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct HistoryStep {
    #[prost(int64, tag = "1")]
    pub(super) num: i64,
}

/// Values of the summary or of the configuration.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Update {
    #[prost(message, repeated, tag = "1")]
    pub(super) update: Vec<ConfigItem>,
}

/// An item of those two, which have their JSON under this number too.
pub(super) type ConfigItem = Item;

/// Files to upload from the folder `files` beside.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Files {
    #[prost(message, repeated, tag = "1")]
    pub(super) files: Vec<FileItem>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct FileItem {
    #[prost(string, tag = "1")]
    pub(super) path: String,
    /// 0 now, 1 at the end.
    #[prost(int32, tag = "2")]
    pub(super) policy: i32,
}

/// What the machine was doing.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Stats {
    #[prost(int32, tag = "1")]
    pub(super) stats_type: i32,
    #[prost(message, optional, tag = "2")]
    pub(super) timestamp: Option<Timestamp>,
    #[prost(message, repeated, tag = "3")]
    pub(super) item: Vec<Item>,
}

/// Against which other metric a metric is drawn.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Metric {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(string, tag = "2")]
    pub(super) glob_name: String,
    #[prost(string, tag = "4")]
    pub(super) step_metric: String,
    #[prost(message, optional, tag = "6")]
    pub(super) options: Option<MetricOptions>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct MetricOptions {
    #[prost(bool, tag = "1")]
    pub(super) step_sync: bool,
    #[prost(bool, tag = "3")]
    pub(super) defined: bool,
}

/// A line on the terminal.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Output {
    /// 0 stderr, 1 stdout.
    #[prost(int32, tag = "1")]
    pub(super) output_type: i32,
    #[prost(message, optional, tag = "2")]
    pub(super) timestamp: Option<Timestamp>,
    #[prost(string, tag = "3")]
    pub(super) line: String,
}

/// The run.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Run {
    #[prost(string, tag = "1")]
    pub(super) run_id: String,
    #[prost(string, tag = "2")]
    pub(super) entity: String,
    #[prost(string, tag = "3")]
    pub(super) project: String,
    #[prost(message, optional, tag = "4")]
    pub(super) config: Option<Update>,
    #[prost(string, tag = "6")]
    pub(super) run_group: String,
    #[prost(string, tag = "7")]
    pub(super) job_type: String,
    #[prost(string, tag = "8")]
    pub(super) display_name: String,
    #[prost(string, tag = "9")]
    pub(super) notes: String,
    #[prost(string, repeated, tag = "10")]
    pub(super) tags: Vec<String>,
    #[prost(string, tag = "13")]
    pub(super) host: String,
    #[prost(int64, tag = "14")]
    pub(super) starting_step: i64,
    #[prost(message, optional, tag = "17")]
    pub(super) start_time: Option<Timestamp>,
    #[prost(message, optional, tag = "21")]
    pub(super) git: Option<Git>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Git {
    #[prost(string, tag = "2")]
    pub(super) commit: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(super) struct Timestamp {
    #[prost(int64, tag = "1")]
    pub(super) seconds: i64,
    #[prost(int32, tag = "2")]
    pub(super) nanos: i32,
}

/// How it ended.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(super) struct Exit {
    #[prost(int32, tag = "1")]
    pub(super) exit_code: i32,
    #[prost(int32, tag = "2")]
    pub(super) runtime: i32,
}

/// A scheduler takes the machine away and will start the run again.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(super) struct Preempting {}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Header {
    #[prost(message, optional, tag = "1")]
    pub(super) version_info: Option<Version>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Version {
    #[prost(string, tag = "1")]
    pub(super) producer: String,
    #[prost(string, tag = "2")]
    pub(super) min_consumer: String,
}

impl Timestamp {
    /// Of seconds since 1970.
    pub(super) fn of(seconds: f64) -> Self {
        Self { seconds: seconds.floor() as i64, nanos: (seconds.fract() * 1e9) as i32 }
    }

    /// Seconds since 1970.
    pub(super) fn seconds(self) -> f64 {
        self.seconds as f64 + f64::from(self.nanos) / 1e9
    }
}
