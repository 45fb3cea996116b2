package job

// LeasedTo says whether a provider has a live lease of this renter, so that it
// may be fetching for a job awarded to it.
func (r *Renter) LeasedTo(provider string) bool {
	r.mu.Lock()
	active := make([]*activeJob, 0, len(r.jobs))
	for _, aj := range r.jobs {
		active = append(active, aj)
	}
	r.mu.Unlock()
	for _, aj := range active {
		if aj.leasedTo(provider) {
			return true
		}
	}
	return false
}

func (aj *activeJob) leasedTo(provider string) bool {
	aj.mu.Lock()
	defer aj.mu.Unlock()
	for _, l := range aj.live {
		if l.c.Provider == provider && !l.c.State.Terminal() {
			return true
		}
	}
	return false
}
