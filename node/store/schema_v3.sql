-- The secrets of open jobs, encrypted: see job/secrets.go.
CREATE TABLE secrets (
  job    TEXT PRIMARY KEY,
  sealed BLOB NOT NULL
) STRICT;
