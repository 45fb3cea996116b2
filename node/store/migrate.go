package store

import (
	"context"
	"database/sql"
	_ "embed" // the schema
	"errors"
	"fmt"
	"strconv"
)

//go:embed schema_v1.sql
var schemaV1 string

//go:embed schema_v2.sql
var schemaV2 string

//go:embed schema_v3.sql
var schemaV3 string

//go:embed schema_v4.sql
var schemaV4 string

// migrations bring a file from format i to i+1. What has been released is never
// changed; a new format is a new element.
var migrations = []string{schemaV1, schemaV2, schemaV3, schemaV4}

// ErrNewer says that a file was written by a newer lumbung.
var ErrNewer = errors.New("the database is of a newer format")

// migrate brings the file to the newest format, in one transaction.
func migrate(ctx context.Context, c *conn, steps []string) (from int, err error) {
	tx, err := c.c.BeginTx(ctx, nil)
	if err != nil {
		return 0, err
	}
	defer func() { _ = tx.Rollback() }()
	if _, err := tx.ExecContext(ctx, `CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT`); err != nil {
		return 0, err
	}
	if from, err = version(ctx, tx); err != nil {
		return 0, err
	}
	if from > len(steps) {
		return from, fmt.Errorf("it has format %d and this build knows %d; use the lumbung that wrote it, or a newer one: %w", from, len(steps), ErrNewer)
	}
	for i := from; i < len(steps); i++ {
		if _, err := tx.ExecContext(ctx, steps[i]); err != nil {
			return from, fmt.Errorf("bring it from format %d to %d: %w", i, i+1, err)
		}
	}
	if _, err := tx.ExecContext(ctx, `INSERT INTO meta (key, value) VALUES ('version', ?1) ON CONFLICT (key) DO UPDATE SET value = ?1`, strconv.Itoa(len(steps))); err != nil {
		return from, err
	}
	return from, tx.Commit()
}

func version(ctx context.Context, tx *sql.Tx) (int, error) {
	var text string
	err := tx.QueryRowContext(ctx, `SELECT value FROM meta WHERE key = 'version'`).Scan(&text)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	v, err := strconv.Atoi(text)
	if err != nil || v < 0 {
		return 0, fmt.Errorf("its format is %q, which is no number", text)
	}
	return v, nil
}
