-- What the files of a folder became when they were added: see content.Memory.
CREATE TABLE listings (
  folder TEXT    PRIMARY KEY,
  used   INTEGER NOT NULL, -- Unix nanoseconds
  bytes  INTEGER NOT NULL, -- of the body
  body   BLOB    NOT NULL
) STRICT;
CREATE INDEX listings_used ON listings (used, folder, bytes);
