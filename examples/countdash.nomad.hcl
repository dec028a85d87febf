# HashiCorp's count dashboard with Attaché in Envoy's place.
#
#   nomad job run examples/countdash.nomad.hcl      then open http://<any client>:9002
#
# Each Nomad client needs:
# - Docker, for the two services, and Nomad's CNI plugins, for the bridge network;
# - Attaché as /usr/local/bin/attache: the exec driver shows a task the host's /usr;
# - the consul binary on PATH, and a Consul agent: Nomad itself needs both for every sidecar, whichever that is.
#
# No arguments: in a sidecar task Attaché finds the bootstrap file that Nomad writes for Envoy.

job "countdash" {
  datacenters = ["*"]

  group "api" {
    network {
      mode = "bridge"
    }

    service {
      name = "count-api"
      port = "9001"

      connect {
        sidecar_service {}

        sidecar_task {
          driver = "exec"

          config {
            command = "/usr/local/bin/attache"
          }

          resources {
            cpu    = 100
            memory = 64
          }
        }
      }
    }

    task "api" {
      driver = "docker"

      config {
        image = "hashicorpdev/counter-api:v3"
      }

      resources {
        cpu    = 100
        memory = 64
      }
    }
  }

  group "dashboard" {
    network {
      mode = "bridge"

      port "http" {
        static = 9002
        to     = 9002
      }
    }

    service {
      name = "count-dashboard"
      port = "http"

      connect {
        sidecar_service {
          proxy {
            upstreams {
              destination_name = "count-api"
              local_bind_port  = 8080
            }
          }
        }

        sidecar_task {
          driver = "exec"

          config {
            command = "/usr/local/bin/attache"
          }

          resources {
            cpu    = 100
            memory = 64
          }
        }
      }
    }

    task "dashboard" {
      driver = "docker"

      config {
        image = "hashicorpdev/counter-dashboard:v3"
      }

      env {
        COUNTING_SERVICE_URL = "http://${NOMAD_UPSTREAM_ADDR_count_api}"
      }

      resources {
        cpu    = 100
        memory = 64
      }
    }
  }
}
