//go:build !unix

package postgres

import "context"

// Server is a running embedded server; there is none on this operating system.
type Server struct{ info Info }

// Binaries is one PostgreSQL installation.
type Binaries struct {
	// Dir holds postgres and initdb.
	Dir string
	// Major is the major version.
	Major int
}

// Start says ErrUnsupported.
func Start(context.Context, Config) (*Server, error) { return nil, ErrUnsupported }

// Download says ErrUnsupported.
func Download(context.Context, func(string)) (Binaries, error) { return Binaries{}, ErrUnsupported }

// FindBinaries says ErrUnsupported.
func FindBinaries(context.Context, string, int) (Binaries, error) { return Binaries{}, ErrUnsupported }

// FindPsql says ErrUnsupported.
func FindPsql(context.Context, string) (string, error) { return "", ErrUnsupported }

// ConnString is never called: there is no server.
func (s *Server) ConnString(db string) string { return s.info.ConnString(db) }

// Info is never called: there is no server.
func (s *Server) Info() Info { return s.info }

// Version is never called: there is no server.
func (s *Server) Version() int { return s.info.Version }

// BinDir is never called: there is no server.
func (s *Server) BinDir() string { return s.info.BinDir }

// DataDir is never called: there is no server.
func (s *Server) DataDir() string { return "" }

// Joined is never called: there is no server.
func (s *Server) Joined() bool { return false }

// Done is never called: there is no server.
func (s *Server) Done() <-chan struct{} { return nil }

// Err is never called: there is no server.
func (s *Server) Err() error { return ErrUnsupported }

// Stop is never called: there is no server.
func (s *Server) Stop(context.Context) error { return nil }
