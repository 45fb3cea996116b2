-- Content of its own that somebody held and nobody may need any more: states of
-- programs, each as large as the one before and alike in nothing.
CREATE TABLE dropped (
  root BLOB PRIMARY KEY
) STRICT, WITHOUT ROWID;

CREATE TRIGGER holds_dropped AFTER DELETE ON holds WHEN OLD.owner LIKE 'checkpoint:%'
BEGIN
  INSERT OR IGNORE INTO dropped (root) VALUES (OLD.root);
END;

CREATE TRIGGER holds_taken AFTER INSERT ON holds
BEGIN
  DELETE FROM dropped WHERE root = NEW.root;
END;
