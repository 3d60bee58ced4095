//! Direct messages: what the stand-in voters do with them in their one database.

use super::*;

impl Cluster {
    /// Takes note of a direct message as it comes.
    pub(super) fn tell(&self, place: &DirectTransaction, machines: MachineSet) {
        let mut told = self.told.lock().unwrap();
        let told = told.entry(transaction_of(place)).or_default();
        match place.kind {
            DirectKind::Write | DirectKind::Replay => {
                for machine in machines.iter() {
                    told.writes.entry(machine).or_default().insert(place.writes_before);
                }
            }
            DirectKind::Cancel { request } => {
                assert_eq!(machines, voters(), "a cancellation goes to all");
                // A cancel that is sent again must not end the backend that took the place of the cancelled one.
                if told.cancelled.insert(request) {
                    told.stopping = true;
                    if let Some(process) = told.process {
                        tokio::spawn(terminate(Arc::clone(&self.postgres), process));
                    }
                }
            }
            _ => {}
        }
    }

    pub(super) async fn direct(self, direct: Direct, machines: MachineSet) {
        let key = ResultKey::Direct(direct.number);
        let mut answering = machines;
        let outcome = match &direct.transaction {
            None => {
                let kept = self.kept.lock().unwrap().get(&key).cloned();
                match kept {
                    Some((_, outcome)) => outcome,
                    None => {
                        let context: SessionContext = borsh::from_slice(&direct.context).unwrap();
                        let exchange = self.decode(&direct.exchange);
                        done(self.alone(&context, "BEGIN READ ONLY", &[exchange], "COMMIT").await)
                    }
                }
            }
            Some(place) => {
                let Some(open) = self.wait_open(transaction_of(place)).await else {
                    return;
                };
                let mut open = open.lock().await;
                self.join(&mut open, machines).await;
                let lost = self.faults.state.lock().unwrap().lost;
                let told = self.told_in_full(&open, place, machines);
                let refused: MachineSet = machines
                    .iter()
                    .filter(|machine| lost.contains(*machine) || !told.contains(*machine))
                    .collect();
                answering = machines.without(refused);
                self.clone()
                    .answer(key, Order(0), Outcome::Unavailable, refused, MachineSet::EMPTY)
                    .await;
                match self.within(&mut open, &direct, place, key).await {
                    Some(Outcome::Word { answers, .. }) => {
                        let digest = word_digest(transaction_of(place), open.began.0, &place.chain, &answers);
                        for machine in answering.iter() {
                            let signature = machine_key(machine).sign(&digest).to_bytes();
                            let word = Outcome::Word { answers, signature };
                            let one = MachineSet::one(machine);
                            self.clone().answer(key, Order(0), word, one, one).await;
                        }
                        return;
                    }
                    Some(outcome) => outcome,
                    None => return,
                }
            }
        };
        self.keep(key, Order(0), &outcome);
        let whole_from = if direct.whole { machines } else { MachineSet::EMPTY };
        self.answer(key, Order(0), outcome, answering, whole_from).await;
    }

    /// A direct message may come before the order of its transaction's Begin is known.
    pub(super) async fn wait_open(&self, id: TransactionId) -> Option<Arc<AsyncMutex<Open>>> {
        for _ in 0..400 {
            if let Some(open) = self.transactions.lock().await.get(&id).cloned() {
                return Some(open);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        None
    }

    /// Makes machines live: each answers what was ordered before.
    pub(super) async fn join(&self, open: &mut Open, machines: MachineSet) {
        let new = machines.without(open.live);
        open.live = open.live.union(machines);
        for (key, order, outcome) in open.answers.iter().filter(|_| !new.is_empty()) {
            self.clone().answer(*key, *order, outcome.clone(), new, new).await;
        }
    }

    /// The machines that were sent every direct write before a place.
    pub(super) fn told_in_full(&self, open: &Open, place: &DirectTransaction, machines: MachineSet) -> MachineSet {
        let told = self.told.lock().unwrap();
        let told = &told[&transaction_of(place)];
        let directs: Vec<u32> = (0..place.writes_before)
            .filter(|at| open.list.get(*at as usize).is_some_and(|ran| ran.direct))
            .collect();
        machines
            .iter()
            .filter(|machine| {
                let writes = told.writes.get(machine);
                directs
                    .iter()
                    .all(|at| writes.is_some_and(|writes| writes.contains(at)))
            })
            .collect()
    }

    /// Runs a direct message of an open transaction; `None` when it is not answered.
    pub(super) async fn within(
        &self,
        open: &mut Open,
        direct: &Direct,
        place: &DirectTransaction,
        key: ResultKey,
    ) -> Option<Outcome> {
        let at = place.writes_before as usize;
        assert!(at <= open.list.len(), "a statement ahead of the list");
        assert_eq!(open.chain(at), place.chain, "place");
        match place.kind {
            DirectKind::Join => None,
            DirectKind::Replay => {
                assert_eq!(open.list[at].exchange, direct.exchange, "what others have run");
                None
            }
            DirectKind::Cancel { .. } => {
                open.list.truncate(at);
                let mut backend = self.backend().await;
                backend.settings(&open.context).await;
                backend.simple(&open.begin).await;
                for ran in &open.list {
                    backend.exchange(&self.decode(&ran.exchange)).await;
                }
                self.runs_on(transaction_of(place), &backend);
                open.backend = backend;
                self.told
                    .lock()
                    .unwrap()
                    .entry(transaction_of(place))
                    .or_default()
                    .stopping = false;
                None
            }
            DirectKind::Word => {
                assert_eq!(at, open.list.len(), "a word on the whole list");
                if let Some((_, outcome)) = self.kept.lock().unwrap().get(&key) {
                    return Some(outcome.clone());
                }
                let checked = open.backend.simple("SET CONSTRAINTS ALL IMMEDIATE").await;
                if checked.status == b'E' {
                    return Some(done(checked));
                }
                let answers = open.list.iter().fold(CHAIN_START, |link, ran| match &ran.outcome {
                    Outcome::Done { multiset, .. } => chain(&link, multiset),
                    _ => link,
                });
                Some(Outcome::Word {
                    // These voters do not know whether anything was written.
                    answers: answers_with_effect(answers, true),
                    signature: [0; 64],
                })
            }
            DirectKind::ObjectNumber => Some(Outcome::ObjectNumber { number: 20_000 }),
            DirectKind::Read => {
                if let Some((_, outcome)) = self.kept.lock().unwrap().get(&key) {
                    return Some(outcome.clone());
                }
                let exchange = self.decode(&direct.exchange);
                let outcome = done(open.backend.exchange(&exchange).await);
                self.keep(key, Order(0), &outcome);
                Some(outcome)
            }
            DirectKind::Write => {
                if let Some(ran) = open.list.get(at) {
                    assert_eq!(ran.exchange, direct.exchange, "the same write again");
                    return Some(ran.outcome.clone());
                }
                if self.told.lock().unwrap()[&transaction_of(place)].stopping {
                    return None;
                }
                let result = open.backend.exchange(&self.decode(&direct.exchange)).await;
                if result.status == 0 {
                    return None;
                }
                let outcome = done(result);
                open.list.push(Ran {
                    exchange: direct.exchange.clone(),
                    outcome: outcome.clone(),
                    direct: true,
                });
                Some(outcome)
            }
        }
    }
}
