//! Where the time goes inside the cluster: its histograms, in Prometheus's text form.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use serde::Serialize;

/// How long a process may take to answer.
const ANSWER_MS_MAX: u64 = 5_000;
/// Labels that tell alike processes apart: their figures are added up.
const LABELS_ADDED_UP: [&str; 4] = ["peer", "voter", "replica", "machine"];
/// The end of the names whose values are shown in milliseconds.
const SECONDS: &str = "_seconds";

/// Names and values, in the order of the text.
type Labels = Vec<(String, String)>;

/// One histogram of one kind of process.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    process: &'static str,
    metric: String,
    labels: BTreeMap<String, String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Total {
    sum: f64,
    count: f64,
}

/// The sums and counts of all histograms of a cluster.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Histograms(BTreeMap<Key, Total>);

/// The mean of one histogram over a time.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Stage {
    /// `node` or `proxy`.
    process: &'static str,
    /// The metric's name.
    metric: String,
    /// Its labels, as in `stage=order`.
    labels: String,
    /// How often it was recorded, over all processes of the kind.
    count: f64,
    /// The mean, in milliseconds for times.
    mean: f64,
    /// `ms`, or nothing for sizes.
    unit: &'static str,
}

impl std::fmt::Display for Stage {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            process,
            metric,
            labels,
            count,
            mean,
            unit,
        } = self;
        let metric = metric.strip_prefix("cloudbft_").unwrap_or(metric);
        write!(
            out,
            "{process:<6} {metric:<36} {labels:<22} {count:>10.0} {mean:>10.3} {unit}"
        )
    }
}

impl Histograms {
    /// Asks all processes of a cluster: nodes and proxies with their `/metrics` addresses. One that does not answer is
    /// named on standard error and left out: these figures explain others, which must not be lost with them.
    pub(crate) async fn scrape(addresses: &[(&'static str, SocketAddr)]) -> Self {
        let mut all = Self::default();
        for (process, address) in addresses {
            match cluster::http::get(*address, "/metrics", Duration::from_millis(ANSWER_MS_MAX)).await {
                Ok(text) => all.add_text(process, &text),
                Err(error) => super::compare::progress(&format!("no metrics of the {process} at {address}: {error}")),
            }
        }
        all
    }

    fn add_text(&mut self, process: &'static str, text: &str) {
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let Some((name, labels, value)) = parse_sample(line) else {
                continue;
            };
            let (metric, is_sum) = match (name.strip_suffix("_sum"), name.strip_suffix("_count")) {
                (Some(metric), _) => (metric, true),
                (None, Some(metric)) => (metric, false),
                (None, None) => continue,
            };
            let labels = labels
                .into_iter()
                .filter(|(name, _)| !LABELS_ADDED_UP.contains(&name.as_str()))
                .collect();
            let key = Key {
                process,
                metric: metric.to_owned(),
                labels,
            };
            let total = self.0.entry(key).or_default();
            *(if is_sum { &mut total.sum } else { &mut total.count }) += value;
        }
    }

    /// What was recorded since `before`. A process that was started again counts from its start.
    pub(crate) fn since(&self, before: &Self) -> Self {
        let difference = self.0.iter().map(|(key, after)| {
            let before = before.0.get(key).copied().unwrap_or_default();
            let before = if after.count < before.count {
                Total::default()
            } else {
                before
            };
            (
                key.clone(),
                Total {
                    sum: after.sum - before.sum,
                    count: after.count - before.count,
                },
            )
        });
        Self(difference.collect())
    }

    /// Adds what was recorded at another time.
    pub(crate) fn add(&mut self, other: &Self) {
        for (key, more) in &other.0 {
            let total = self.0.entry(key.clone()).or_default();
            total.sum += more.sum;
            total.count += more.count;
        }
    }

    /// How often one histogram of a kind of process was recorded, over all its labels.
    pub(crate) fn count(&self, process: &str, metric: &str) -> f64 {
        let of_metric = self
            .0
            .iter()
            .filter(|(key, _)| key.process == process && key.metric == metric);
        of_metric.map(|(_, total)| total.count).sum()
    }

    /// The means of all that were recorded at all: stages first, then the rest by name.
    pub(crate) fn stages(&self) -> Vec<Stage> {
        let recorded = self.0.iter().filter(|(_, total)| total.count > 0.0);
        let mut stages: Vec<Stage> = recorded
            .map(|(key, total)| {
                let is_time = key.metric.ends_with(SECONDS);
                let labels: Vec<_> = key
                    .labels
                    .iter()
                    .map(|(name, value)| format!("{name}={value}"))
                    .collect();
                Stage {
                    process: key.process,
                    metric: key.metric.clone(),
                    labels: labels.join(","),
                    count: total.count,
                    mean: total.sum / total.count * if is_time { 1_000.0 } else { 1.0 },
                    unit: if is_time { "ms" } else { "" },
                }
            })
            .collect();
        stages.sort_by_key(|stage| !stage.labels.contains("stage="));
        stages
    }
}

/// Parses `name{label="value",...} number`.
fn parse_sample(line: &str) -> Option<(&str, Labels, f64)> {
    let name_end = line.find(['{', ' '])?;
    let (name, rest) = line.split_at(name_end);
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(labels) => parse_labels(labels)?,
        None => (Vec::new(), rest),
    };
    let value = rest.split_whitespace().next()?.parse().ok()?;
    Some((name, labels, value))
}

/// Parses `label="value",...}`, and gives what follows.
fn parse_labels(mut text: &str) -> Option<(Labels, &str)> {
    let mut labels = Vec::new();
    loop {
        text = text.trim_start_matches([',', ' ']);
        if let Some(rest) = text.strip_prefix('}') {
            return Some((labels, rest));
        }
        let (name, rest) = text.split_once("=\"")?;
        let mut value = String::new();
        let mut characters = rest.char_indices();
        let end = loop {
            match characters.next()? {
                (at, '"') => break at + 1,
                (_, '\\') => match characters.next()?.1 {
                    'n' => value.push('\n'),
                    escaped => value.push(escaped),
                },
                (_, character) => value.push(character),
            }
        };
        labels.push((name.to_owned(), value));
        text = rest.get(end..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: &str = "# HELP cloudbft_stage_duration_seconds Time.\n\
        # TYPE cloudbft_stage_duration_seconds histogram\n\
        cloudbft_stage_duration_seconds_bucket{stage=\"order\",le=\"0.1\"} 4\n\
        cloudbft_stage_duration_seconds_sum{stage=\"order\"} 0.5\n\
        cloudbft_stage_duration_seconds_count{stage=\"order\"} 10\n\
        cloudbft_queries_total 7\n";
    const AFTER: &str = "cloudbft_stage_duration_seconds_sum{stage=\"order\"} 1.5\n\
        cloudbft_stage_duration_seconds_count{stage=\"order\"} 30\n\
        cloudbft_peer_rtt_seconds_sum{peer=\"m1\"} 1\ncloudbft_peer_rtt_seconds_count{peer=\"m1\"} 1\n\
        cloudbft_peer_rtt_seconds_sum{peer=\"m2\"} 3\ncloudbft_peer_rtt_seconds_count{peer=\"m2\"} 1\n\
        cloudbft_order_batch_size_sum 12\ncloudbft_order_batch_size_count 4\n\
        cloudbft_idle_seconds_sum 0\ncloudbft_idle_seconds_count 0\n";

    fn parsed(text: &str) -> Histograms {
        let mut histograms = Histograms::default();
        histograms.add_text("node", text);
        histograms
    }

    #[test]
    fn labels_are_parsed_with_their_escapes() {
        let (name, labels, value) = parse_sample(r#"a_sum{x="1 } \" \\ \n",y=""} 2.5e1"#).unwrap();
        assert_eq!((name, value), ("a_sum", 25.0));
        assert_eq!(
            labels,
            [
                (String::from("x"), String::from("1 } \" \\ \n")),
                (String::from("y"), String::new())
            ]
        );
        for damaged in ["", "a", "a{x=\"1\" 2", "a{x} 1", "a x"] {
            assert_eq!(parse_sample(damaged), None, "{damaged}");
        }
    }

    #[test]
    fn means_are_of_what_was_recorded_in_between() {
        let stages = parsed(AFTER).since(&parsed(BEFORE)).stages();
        let shown: Vec<_> = stages
            .iter()
            .map(|stage| (stage.labels.as_str(), stage.count, stage.mean, stage.unit))
            .collect();
        assert_eq!(
            shown,
            [
                ("stage=order", 20.0, 50.0, "ms"),
                ("", 4.0, 3.0, ""),
                ("", 2.0, 2_000.0, "ms")
            ]
        );
    }

    #[test]
    fn a_process_that_was_started_again_counts_from_its_start() {
        let restarted = parsed(BEFORE).since(&parsed(AFTER)).stages();
        assert_eq!((restarted[0].count, restarted[0].mean), (10.0, 50.0));
    }

    #[test]
    fn a_metric_is_counted_over_its_labels() {
        let both_peers = parsed(AFTER);
        assert_eq!(both_peers.count("node", "cloudbft_peer_rtt_seconds"), 2.0);
        assert_eq!(both_peers.count("proxy", "cloudbft_peer_rtt_seconds"), 0.0);
    }

    #[test]
    fn times_add_up() {
        let mut sum = parsed(BEFORE);
        sum.add(&parsed(AFTER));
        assert_eq!(sum.stages()[0].count, 40.0);
    }
}
