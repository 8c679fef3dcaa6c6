package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/taskerhq/tasker/server"
)

func init() { commands = append(commands, newHealth) }

func newHealth(c *cli) *cobra.Command {
	var (
		address, cert, key string
		live               bool
		timeout            time.Duration
	)
	cmd := &cobra.Command{
		Use:   "health",
		Short: "Ask a server whether it is ready: exit status 0 or 1",
		Long: `Ask a server whether it is ready for calls, or with --live only whether it works. The exit status is 0 if so, else 1.

Beside the server, in its container, nothing needs to be said: the address comes from $TASKER_LISTEN and the certificate to
expect from $TASKER_TLS_CERT. Where the server wants certificates from its clients, the server's own pair is shown to it.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if address == "" {
				address = healthAddress(c.getenv)
			}
			if cert == "" {
				cert, key = c.getenv("TASKER_TLS_CERT"), c.getenv("TASKER_TLS_KEY")
			}
			creds, err := expecting(cert, key)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			return checkHealth(ctx, c, address, creds, live)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&address, "address", "", "server's HOST:PORT [$TASKER_ADDRESS, $TASKER_LISTEN] (default "+server.DefaultAddress+")")
	flags.StringVar(&cert, "tls-cert", "", "the server's certificate, PEM [$TASKER_TLS_CERT]; without one, no TLS")
	flags.StringVar(&key, "tls-key", "", "the key of that certificate, to be shown as the client's [$TASKER_TLS_KEY]")
	flags.BoolVar(&live, "live", false, "ask only whether the process works, whatever its database does")
	flags.DurationVar(&timeout, "timeout", 2*time.Second, "how long to wait for the answer")
	return cmd
}

// healthAddress is where the server of this container listens. One that listens everywhere is asked on the loopback.
func healthAddress(getenv func(string) string) string {
	if address := getenv("TASKER_ADDRESS"); address != "" {
		return address
	}
	host, port, err := net.SplitHostPort(getenv("TASKER_LISTEN"))
	if err != nil {
		return server.DefaultAddress
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
		if ip != nil && ip.To4() == nil {
			host = "::1"
		}
	}
	return net.JoinHostPort(host, port)
}

// expecting trusts the certificate in a file and no other. Its names do not matter: it is asked on the loopback.
func expecting(cert, key string) (credentials.TransportCredentials, error) {
	if cert == "" {
		return insecure.NewCredentials(), nil
	}
	pem, err := os.ReadFile(cert)
	if err != nil {
		return nil, fmt.Errorf("reading --tls-cert: %w", err)
	}
	trusted := x509.NewCertPool()
	trusted.AppendCertsFromPEM(pem)
	conf := &tls.Config{
		MinVersion: tls.VersionTLS12,
		// The chain is verified below, without the host's name.
		InsecureSkipVerify: true, //nolint:gosec // see VerifyConnection
		VerifyConnection: func(state tls.ConnectionState) error {
			_, err := state.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: trusted, Intermediates: trusted})
			return err
		},
	}
	if key != "" {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return nil, fmt.Errorf("reading --tls-key: %w", err)
		}
		conf.Certificates = []tls.Certificate{pair}
	}
	return credentials.NewTLS(conf), nil
}

func checkHealth(ctx context.Context, c *cli, address string, creds credentials.TransportCredentials, live bool) error {
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(creds))
	if err != nil {
		return fmt.Errorf("connecting to %s: %w", address, err)
	}
	defer conn.Close() //nolint:errcheck // the answer is known
	service := ""
	if live {
		service = server.Liveness
	}
	resp, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{Service: service}, grpc.WaitForReady(true))
	if err != nil {
		return fmt.Errorf("asking %s: %w", address, errors.New(status.Convert(err).Message()))
	}
	fmt.Fprintln(c.stdout, resp.GetStatus())
	if resp.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		return &exitError{code: 1}
	}
	return nil
}
