package job

// PortKeeper listens on this machine for the ports of jobs, from a job's
// submission to its end.
type PortKeeper interface {
	// Open listens and gives the ports as they are: a local 0 becomes the number
	// that the system picked.
	Open(job string, ports []PortSpec) ([]PortSpec, error)
	Close(job string)
}

// openPorts listens for a job's ports: a port that is taken is told before
// anything is spent.
func (r *Renter) openPorts(j *Job) error {
	if len(j.Spec.Ports) == 0 || r.Ports == nil {
		return nil
	}
	ports, err := r.Ports.Open(j.ID, j.Spec.Ports)
	if err != nil {
		return err
	}
	j.Spec.Ports = ports
	return nil
}

func (r *Renter) closePorts(id string) {
	if r.Ports != nil {
		r.Ports.Close(id)
	}
}
