//! Exchanges on a backend, by the raw protocol.

use super::*;

impl Backend {
    pub(super) async fn settings(&mut self, context: &SessionContext) {
        self.simple("DISCARD ALL").await;
        for (name, value) in &context.settings {
            let (name, value) = (name.replace('\'', "''"), value.replace('\'', "''"));
            self.simple(&format!("SELECT set_config('{name}', '{value}', false)"))
                .await;
        }
    }

    pub(super) async fn simple(&mut self, text: &str) -> ExchangeResult {
        self.exchange(&Exchange::Simple { text: text.into() }).await
    }

    pub(super) async fn exchange(&mut self, exchange: &Exchange) -> ExchangeResult {
        let mut parsed = false;
        match exchange {
            Exchange::Simple { text } | Exchange::CopyStart { text } => {
                self.send(&super::super::raw::query(text)).await;
            }
            Exchange::CopyData { data } => {
                self.send(&message(b'd', data)).await;
                return ExchangeResult {
                    messages: Bytes::new(),
                    status: b'T',
                };
            }
            // One server stands for all: it numbers objects like itself.
            Exchange::ObjectNumbers { .. } => {
                return ExchangeResult {
                    messages: Bytes::new(),
                    status: b'T',
                };
            }
            Exchange::Stored { .. } => panic!("a body that is only a name"),
            Exchange::CopyEnd { failure: None } => self.send(&message(b'c', b"")).await,
            Exchange::CopyEnd { failure: Some(reason) } => {
                self.send(&message(b'f', format!("{reason}\0").as_bytes())).await;
            }
            Exchange::Extended { statements, steps } => {
                parsed = true;
                self.extended(statements, steps).await;
            }
        }
        self.result(parsed).await
    }

    /// Sends the steps. Statements without a Parse step are prepared silently, under names that are left out.
    pub(super) async fn extended(&mut self, statements: &[sql::operation::StatementText], steps: &[Step]) {
        let mut bytes = Vec::new();
        let parsed: Vec<bool> = (0..statements.len())
            .map(|at| {
                steps
                    .iter()
                    .any(|step| matches!(step, Step::Parse { statement } if usize::from(*statement) == at))
            })
            .collect();
        let parse = |at: usize, name: String| {
            let mut body = format!("{name}\0{}\0", statements[at].text).into_bytes();
            body.extend_from_slice(&(statements[at].parameter_types.len() as u16).to_be_bytes());
            statements[at]
                .parameter_types
                .iter()
                .for_each(|oid| body.extend_from_slice(&oid.to_be_bytes()));
            message(b'P', &body)
        };
        for at in (0..statements.len()).filter(|at| !parsed[*at]) {
            let mut silent = parse(at, format!("s{at}"));
            silent.extend(message(b'H', b""));
            self.send(&silent).await;
            // An error here answers for the whole exchange.
            match self.next().await {
                Some(answer) if answer.tag == b'1' => {}
                other => {
                    self.pushed = other;
                    self.send(&message(b'S', b"")).await;
                    return;
                }
            }
        }
        for step in steps {
            match step {
                Step::Parse { statement } => bytes.extend(parse(usize::from(*statement), format!("s{statement}"))),
                Step::DescribeStatement { statement } => {
                    bytes.extend(message(b'D', format!("Ss{statement}\0").as_bytes()))
                }
                Step::Bind {
                    portal,
                    statement,
                    parameter_formats,
                    parameters,
                    result_formats,
                } => {
                    let mut body = format!("{portal}\0s{statement}\0").into_bytes();
                    let formats = |body: &mut Vec<u8>, formats: &[i16]| {
                        body.extend_from_slice(&(formats.len() as u16).to_be_bytes());
                        formats
                            .iter()
                            .for_each(|format| body.extend_from_slice(&format.to_be_bytes()));
                    };
                    formats(&mut body, parameter_formats);
                    body.extend_from_slice(&(parameters.len() as u16).to_be_bytes());
                    for parameter in parameters {
                        match parameter {
                            None => body.extend_from_slice(&(-1_i32).to_be_bytes()),
                            Some(value) => {
                                body.extend_from_slice(&(value.len() as u32).to_be_bytes());
                                body.extend_from_slice(value);
                            }
                        }
                    }
                    formats(&mut body, result_formats);
                    bytes.extend(message(b'B', &body));
                }
                Step::DescribePortal { portal } => bytes.extend(message(b'D', format!("P{portal}\0").as_bytes())),
                Step::Execute { portal, max_rows } => bytes.extend(super::super::raw::execute(portal, *max_rows)),
                Step::ClosePortal { portal } => bytes.extend(message(b'C', format!("P{portal}\0").as_bytes())),
            }
        }
        for at in 0..statements.len() {
            bytes.extend(message(b'C', format!("Ss{at}\0").as_bytes()));
        }
        bytes.extend(message(b'S', b""));
        self.send(&bytes).await;
        self.closes = statements.len();
    }

    pub(super) async fn result(&mut self, extended: bool) -> ExchangeResult {
        let mut messages = Vec::new();
        // Zero: the backend was terminated.
        let mut status = 0;
        let mut answers = Vec::new();
        while let Some(answer) = self.next().await {
            match answer.tag {
                b'Z' => {
                    status = answer.body[0];
                    break;
                }
                b'S' => {}
                b'G' => {
                    answers.push(answer);
                    status = b'T';
                    break;
                }
                _ => answers.push(answer),
            }
        }
        if extended {
            let failed = answers.iter().any(|answer| answer.tag == b'E');
            if status == 0 {
                answers.clear();
            } else if !failed {
                answers.truncate(answers.len() - self.closes);
            } else {
                let names: Vec<u8> = (0..self.closes)
                    .flat_map(|at| message(b'C', format!("Ss{at}\0").as_bytes()))
                    .collect();
                self.send(&[names, message(b'S', b"")].concat()).await;
                while self.next().await.is_some_and(|answer| answer.tag != b'Z') {}
            }
        }
        for answer in answers {
            messages.extend(message(answer.tag, &answer.body));
        }
        ExchangeResult {
            messages: messages.into(),
            status,
        }
    }
}
