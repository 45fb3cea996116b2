-- Format 1. Times are Unix nanoseconds, 0 for none; a body is the JSON of the
-- record, and the columns beside it are what is searched by.

CREATE TABLE jobs (
  n       INTEGER PRIMARY KEY,
  id      TEXT    NOT NULL UNIQUE,
  open    INTEGER NOT NULL,
  created INTEGER NOT NULL,
  body    BLOB    NOT NULL
) STRICT;
CREATE INDEX jobs_created ON jobs (created, n);
CREATE INDEX jobs_open ON jobs (created, n) WHERE open = 1;

CREATE TABLE tasks (
  job  TEXT    NOT NULL,
  idx  INTEGER NOT NULL,
  body BLOB    NOT NULL,
  PRIMARY KEY (job, idx)
) STRICT;

CREATE TABLE contracts (
  n    INTEGER PRIMARY KEY,
  id   BLOB    NOT NULL UNIQUE,
  side TEXT    NOT NULL,
  open INTEGER NOT NULL,
  job  TEXT    NOT NULL,
  task INTEGER NOT NULL,
  body BLOB    NOT NULL
) STRICT;
CREATE INDEX contracts_job ON contracts (job, task);
CREATE INDEX contracts_open ON contracts (side) WHERE open = 1;

-- The evidence: the signed bytes as they were made or received.
CREATE TABLE messages (
  n     INTEGER PRIMARY KEY,
  lease BLOB    NOT NULL,
  kind  TEXT    NOT NULL,
  hash  BLOB    NOT NULL,
  at    INTEGER NOT NULL,
  raw   BLOB    NOT NULL
) STRICT;
CREATE UNIQUE INDEX messages_once ON messages (lease, hash);
CREATE INDEX messages_kind ON messages (lease, kind);

CREATE TABLE log_heads (
  id    INTEGER PRIMARY KEY,
  lease BLOB    NOT NULL UNIQUE,
  next  INTEGER NOT NULL,
  bytes INTEGER NOT NULL,
  full  INTEGER NOT NULL
) STRICT;
CREATE TABLE logs (
  head   INTEGER NOT NULL,
  seq    INTEGER NOT NULL,
  stream INTEGER NOT NULL,
  at     INTEGER NOT NULL,
  data   BLOB    NOT NULL,
  PRIMARY KEY (head, seq)
) STRICT, WITHOUT ROWID;

-- The journal. An amount is 128 bits in two columns, each the bits of an
-- unsigned number.
CREATE TABLE entries (
  n     INTEGER PRIMARY KEY,
  cause TEXT    NOT NULL,
  kind  TEXT    NOT NULL,
  at    INTEGER NOT NULL,
  text  TEXT    NOT NULL,
  UNIQUE (cause, kind)
) STRICT;
CREATE TABLE legs (
  entry   INTEGER NOT NULL REFERENCES entries (n),
  pos     INTEGER NOT NULL,
  account TEXT    NOT NULL,
  debit   INTEGER NOT NULL,
  asset   TEXT    NOT NULL,
  hi      INTEGER NOT NULL,
  lo      INTEGER NOT NULL,
  PRIMARY KEY (entry, pos)
) STRICT, WITHOUT ROWID;
CREATE INDEX legs_account ON legs (account);
CREATE TABLE balances (
  account   TEXT    NOT NULL,
  asset     TEXT    NOT NULL,
  debit_hi  INTEGER NOT NULL,
  debit_lo  INTEGER NOT NULL,
  credit_hi INTEGER NOT NULL,
  credit_lo INTEGER NOT NULL,
  PRIMARY KEY (account, asset)
) STRICT, WITHOUT ROWID;

CREATE TABLE events (
  seq  INTEGER PRIMARY KEY AUTOINCREMENT,
  body BLOB NOT NULL
) STRICT;

CREATE TABLE holds (
  owner TEXT    NOT NULL,
  root  BLOB    NOT NULL,
  until INTEGER NOT NULL,
  PRIMARY KEY (owner, root)
) STRICT, WITHOUT ROWID;
CREATE INDEX holds_until ON holds (until);

CREATE TABLE images (
  key     TEXT    PRIMARY KEY, -- the name, or the id of an image without one
  id      TEXT    NOT NULL,
  root    BLOB    NOT NULL,
  created INTEGER NOT NULL,
  body    BLOB    NOT NULL
) STRICT;
CREATE INDEX images_id ON images (id);

CREATE TABLE pins (
  root    BLOB    PRIMARY KEY,
  text    TEXT    NOT NULL,
  created INTEGER NOT NULL
) STRICT;

CREATE TABLE settings (
  key   TEXT PRIMARY KEY,
  value BLOB NOT NULL
) STRICT;
