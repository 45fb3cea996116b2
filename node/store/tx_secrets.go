package store

// PutSecrets implements job.Tx.
func (t *txn) PutSecrets(job string, sealed []byte) error {
	_, err := t.exec(`INSERT INTO secrets (job, sealed) VALUES (?1, ?2) ON CONFLICT (job) DO UPDATE SET sealed = ?2`, job, sealed)
	return wrap(err, "put the secrets of job %s", job)
}

// Secrets implements job.Tx.
func (t *txn) Secrets(job string) ([]byte, error) {
	var sealed []byte
	err := t.get(`SELECT sealed FROM secrets WHERE job = ?`, []any{job}, &sealed)
	return sealed, wrap(err, "secrets of job %s", job)
}

// DropSecrets implements job.Tx. A row that is deleted leaves its bytes in the
// file until their place is used again, so zeros take it first.
func (t *txn) DropSecrets(job string) error {
	_, err := t.exec(`UPDATE secrets SET sealed = zeroblob(length(sealed)) WHERE job = ?`, job)
	if err == nil {
		_, err = t.exec(`DELETE FROM secrets WHERE job = ?`, job)
	}
	return wrap(err, "forget the secrets of job %s", job)
}
