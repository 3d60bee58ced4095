//! To which channels sessions of each client listen, as the ordered history says. Pure.

use std::collections::{BTreeMap, BTreeSet};

use borsh::{BorshDeserialize, BorshSerialize};
use ordering::identifiers::ClientId;
use ordering::message::Notification;
use sql::operation::{CHANNEL_BYTES_MAX, CHANNELS_MAX};

use crate::work::Refused;

/// The channels of all clients. Bounded: clients are those of the cluster file, and each has at most [`CHANNELS_MAX`].
#[derive(Clone, Debug, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Listeners {
    by_client: BTreeMap<ClientId, BTreeSet<String>>,
}

impl Listeners {
    /// A client's sessions listen to these channels and no others.
    ///
    /// # Errors
    /// When they are too many, or a name is none.
    pub fn listen(&mut self, client: ClientId, channels: &[String]) -> Result<(), Refused> {
        let is_name = |name: &String| (1..=CHANNEL_BYTES_MAX).contains(&name.len()) && !name.contains('\0');
        if channels.len() > CHANNELS_MAX || !channels.iter().all(is_name) {
            return Err(Refused::new("54000", "too many channels, or names that are none"));
        }
        match channels.is_empty() {
            true => self.by_client.remove(&client),
            false => self.by_client.insert(client, channels.iter().cloned().collect()),
        };
        Ok(())
    }

    /// Whether nobody listens.
    pub fn is_empty(&self) -> bool {
        self.by_client.is_empty()
    }

    /// All channels to which somebody listens, each once.
    pub fn channels(&self) -> BTreeSet<&str> {
        self.by_client.values().flatten().map(String::as_str).collect()
    }

    /// What each client gets of these notifications; nothing for those that do not listen to any of it.
    pub fn divide(&self, notifications: &[Notification]) -> Vec<(ClientId, Vec<Notification>)> {
        let of = |channels: &BTreeSet<String>| -> Vec<Notification> {
            let wanted = notifications.iter().filter(|one| channels.contains(&one.channel));
            wanted.cloned().collect()
        };
        let divided = self.by_client.iter().map(|(client, channels)| (*client, of(channels)));
        divided.filter(|(_, wanted)| !wanted.is_empty()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn each_client_gets_what_its_sessions_listen_to() {
        let mut listeners = Listeners::default();
        listeners.listen(ClientId(1), &names(&["a", "b"])).unwrap();
        listeners.listen(ClientId(2), &names(&["b"])).unwrap();
        assert_eq!(listeners.channels().into_iter().collect::<Vec<_>>(), ["a", "b"]);
        let notify = |channel: &str| Notification {
            channel: channel.into(),
            payload: "x".into(),
        };
        let all = [notify("b"), notify("c"), notify("a")];
        let divided = listeners.divide(&all);
        assert_eq!(
            divided,
            [
                (ClientId(1), vec![notify("b"), notify("a")]),
                (ClientId(2), vec![notify("b")])
            ]
        );
        // The list of a client takes the place of the one before.
        listeners.listen(ClientId(1), &[]).unwrap();
        listeners.listen(ClientId(2), &names(&["c"])).unwrap();
        assert_eq!(listeners.divide(&all), [(ClientId(2), vec![notify("c")])]);
        listeners.listen(ClientId(2), &[]).unwrap();
        assert!(listeners.is_empty());
    }

    #[test]
    fn a_client_cannot_make_voters_keep_much() {
        let mut listeners = Listeners::default();
        let many: Vec<String> = (0..=CHANNELS_MAX).map(|number| number.to_string()).collect();
        for channels in [
            many,
            names(&[""]),
            names(&["a\0"]),
            vec!["x".repeat(CHANNEL_BYTES_MAX + 1)],
        ] {
            assert!(listeners.listen(ClientId(1), &channels).is_err());
        }
        assert!(listeners.is_empty());
    }
}
